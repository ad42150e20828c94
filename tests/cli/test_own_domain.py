"""Questions of one's own by the real command line: what is refused, and the whole how-to."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run
from tests.cli.test_bad_input import assert_refused

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
