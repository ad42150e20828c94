"""Questions of one's own by the real command line: what is refused, and the whole how-to."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from t3d.core.store import TrajectoryStore
from t3d.models import from_pretrained
from tests.cli.conftest import Run
from tests.cli.test_bad_input import assert_refused
from tests.cli.test_documents import ROOT, blocks, commands, recipes

QUIET = ("--progress", "false")


def write_rows(path: Path, numbers: range) -> Path:
    """Questions with worked and final answers."""
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"question": f"Reverse {n}.", "reference": f"It is \\boxed{{{n}}}.", "answer": str(n)}
        for n in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_nothing_trains_on_what_is_evaluated(recipe_file: Path, tmp_path: Path, t3d: Run) -> None:
    output, mine = tmp_path / "run", write_rows(tmp_path / "mine.jsonl", range(8))
    other = write_rows(tmp_path / "other.jsonl", range(7, 23))
    call = ("run", recipe_file, "--output", output, *QUIET, "--task", mine)
    outcome = t3d(*call, "--dry_run")
    assert_refused(outcome, 1, "mine.jsonl is one file, so data.prompts would take the problems")
    prompts = ("--data.prompts", other)
    watch = ("--watch", "{every: 1}")
    assert_refused(t3d(*call, *prompts, *watch), 1, "so watch would take the problems")
    outcome = t3d(*call, *prompts)
    assert_refused(outcome, 1, f"other.jsonl: asks what problem mine/8 of {mine} asks")
    assert not output.exists()


SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}


def test_a_pretraining_that_fails_claims_nothing(tmp_path: Path, t3d: Run) -> None:
    """And needs no recipe, as every key has a default."""
    output, mine = tmp_path / "model", tmp_path / "mine"
    write_rows(mine / "train.jsonl", range(8))
    size = ("--training.steps", 1, "--training.micro_batch_size", 4, "--shape", json.dumps(SHAPE))
    call = ("pretrain", "--task", mine, "--output", output, *size, *QUIET)
    outcome = t3d(*call, "--training.batch_size", 16)
    assert_refused(outcome, 1, "8 training sequences are fewer than batch_size=16")
    assert not output.exists()
    outcome = t3d(*call, "--training.batch_size", 4)
    assert (outcome.code, outcome.out) == (0, f"{output}\n"), outcome.err


def test_a_new_model_of_chats_is_no_model_of_the_default_task(tmp_path: Path, t3d: Run) -> None:
    chats, output = write_rows(tmp_path / "chats.jsonl", range(8)), tmp_path / "model"
    size = ("--training.steps", 1, *BATCH, "--shape", json.dumps(SHAPE))
    outcome = t3d("pretrain", "--data.path", chats, "--output", output, *size, *QUIET)
    assert outcome.code == 0, outcome.err
    short = ("--decoding.max_new_tokens", 8)
    answered = t3d("generate", "--model", output, *short, "Reverse 7.")
    assert (answered.code, answered.err) == (0, "")


def test_a_switch_takes_a_value_too(tmp_path: Path, t3d: Run) -> None:
    mine = write_rows(tmp_path / "mine.jsonl", range(8))
    call = ("pretrain", "--data.path", mine)
    for model, name in (((), "a new model"), (("--model", "mini_teacher"), "mini_teacher")):
        planned = t3d(*call, *model, "--dry_run", "true")
        assert planned.code == 0, planned.err
        assert planned.out == t3d(*call, *model, "--dry-run").out
        outcome = t3d(*call, *model, "--dry_run", "true", "--data.max_length", 300)
        assert_refused(outcome, 1, f"max_length=300 is beyond the 256 positions of {name}")
    assert_refused(t3d(*call, "--dry_run", "false"), 1, "name its directory with --output")


HOW_TO = ROOT / "docs" / "own_domain.md"
STEPS = ("--training.steps", 4, "--training.warmup_steps", 1)
BATCH = ("--training.batch_size", 8, "--training.micro_batch_size", 8)
PROBLEMS = ("--data.num_prompts", 16, "--data.num_problems", 8)
SMALL = {
    "pretrain": (*STEPS, *BATCH, "--shape.hidden_size", 16, "--shape.num_hidden_layers", 1, *QUIET),
    "run": (*STEPS, *BATCH, *PROBLEMS, "--rollout.decoding.max_new_tokens", 16, *QUIET),
    "eval": ("--num_problems", 8, "--max_new_tokens", 16, *QUIET),
    "generate": (),
    "export": (),
}
"""What makes the commands of the how-to a matter of seconds."""


def sorted_words() -> list[dict[str, str]]:
    """Rows as the how-to shows them."""
    rows = []
    for words in permutations(("fig", "pear", "kiwi", "plum", "lime", "date"), 3):
        first, second, third = sorted(words)
        answer = f"{first}, {second}, {third}"
        work = f"First {first}, then {second}, then {third}: \\boxed{{{answer}}}"
        question = f"Sort {', '.join(words)}."
        rows.append({"question": question, "reference": work, "answer": answer})
    return rows


def read(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def test_the_how_to_from_questions_to_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, t3d: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = sorted_words()
    [shown] = blocks(HOW_TO, "json")
    assert all(json.loads(line) in rows for line in shown.splitlines())
    Path("data/mine").mkdir(parents=True)
    for split, share in (("train", rows[:96]), ("dev", rows[96:104]), ("test", rows[104:])):
        text = "".join(json.dumps(row) + "\n" for row in share)
        Path(f"data/mine/{split}.jsonl").write_text(text)
    for name, text in recipes(HOW_TO).items():
        Path(name).write_text(text)
    done: list[str] = []
    told = ""
    for (_, *call), whole in commands(HOW_TO):
        if whole:
            outcome = t3d(*call, *SMALL[call[0]])
            assert outcome.code == 0, f"{call}: {outcome.err}"
            done.append(call[0])
            told += outcome.err
    assert done == ["pretrain", "pretrain", "eval", "run", "run", "generate", "eval", "export"]

    teacher = from_pretrained("runs/teacher")
    words = {teacher.decode([token]) for token in teacher.encode_responses([" kiwi"])[0]}
    assert " kiwi" in words
    assert from_pretrained("runs/words").model.config.block_size == 1
    assert teacher.model.config.block_size == 4
    first = read("runs/teacher_eval/results.json")["rows"]
    assert {(row["method"], row["n"]) for row in first} == {("original", 8)}

    store = TrajectoryStore.open(Path("runs/mine/trajectories")).read()
    assert [row.prompt_id for row in store] == [f"train/{n}" for n in range(1, 17)]
    found = read("runs/mine/results.json")["rows"]
    assert [row["method"] for row in found] == ["original"] * 2 + ["rtd"] * 2
    record = read("runs/mine/checkpoints/rtd/provenance.json")
    assert (record["rounds"], record["optimizer_steps"], record["model"]) == (4, 4, "runs/teacher")
    # Of a model that has learned nothing no answer can be read, which is told every round.
    assert told.count("too few to verify by; mine@") == 3

    last = read("runs/student_eval/results.json")["rows"]
    assert {(row["method"], row["n"]) for row in last} == {("rtd", 8)}
    assert len({row["task"] for row in [*first, *found, *last]}) == 1
    card = Path("export/mine/README.md").read_text()
    assert "- starts from: `runs/teacher`\n" in card
    assert card.count("| rtd |") == len(last)
    assert from_pretrained("export/mine").model.config.block_size == 4
