"""A small share of `python -m benchmarks.fuzz`, and what that has found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import assume, given, settings

from t3d.__main__ import main as start
from t3d.cli.commands import COMMANDS
from tests.cli.conftest import Run
from tests.cli.damage import Damage
from tests.cli.fuzzing import ONCE, Case, attempt, cases, make_small
from tests.cli.inputs import build
from tests.cli.test_bad_input import assert_refused


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        build(path)
    return path


MODEL = "--model model"
STORE, SETTING = "store/shards/part-00000-000000.json", "rows/evaluation"
CONFIG, DEEP = "model/config.json", "[" * 9999
# A call, what it reads, the damage, and what is said.
FOUND: list[tuple[str, str, str, list[Damage], str]] = [
    ("report", "rows", "rows", [("rows", "other kind", 0, None)], "rows/results.json: Not a dir"),
    (
        "frontier",
        "rows --output out",
        "rows",
        [("rows/results.json", "link", 1, None)],
        "rows/results.json: Too many levels of symbolic links",
    ),
    ("report", f"{'x' * 300} --output out", "rows", [], "results.json: File name too long; name"),
    ("import", f"{'x' * 300} {MODEL} --output out", "model", [], "cannot be read: File name too"),
    ("generate", f"{MODEL} --show_steps= q", "model", [], "expected bool or null, got nothing"),
    ("train", "--training.lora=", "model", [], "lora: expected LoraSettings or null, got nothing"),
    ("bench train", "--training.steps=", "model", [], "training.steps: expected int, got nothing"),
    ("pretrain", "--training=2", "own", [], "training: expected keys, got 2"),
    ("export", f"{MODEL} --block_size={'x' * 3000}", "model", [], "got xxxx"),
    ("export-rollouts", f"--trajectories store {MODEL} --output=", "store model", [], "no file"),
    ("data convert", "upstream.json --output own --dataset x", "upstream.json own", [], "no file"),
    ("bench decode", f"{MODEL} --batch_sizes [100000000]", "model", [], "must lie in [1, 65536]"),
    ("bench decode", f"{MODEL} --new_tokens 100000000", "model", [], "than the 256 positions of"),
    ("generate", f"{MODEL} q", "model", [(CONFIG, "link", 1, None)], "a link to nothing"),
    ("generate", f"{MODEL} q", "model", [(CONFIG, "link", 2, None)], "a link to nothing"),
    (
        "generate",
        f"{MODEL} q",
        "model",
        [("model/tokenizer_config.json", "text", 0, '{"model_max_length": [1]}')],
        "cannot load the tokenizer",
    ),
    (
        "eval",
        f"{MODEL} --task own --config grid.yaml --output rows",
        "model own grid.yaml rows",
        [(f"{SETTING}/*/row.json", "text", 0, DEEP)],
        "not valid JSON: nested too deeply",
    ),
    (
        "eval",
        f"{MODEL} --task own --config grid.yaml --output rows",
        "model own grid.yaml rows",
        [(f"{SETTING}/*/row.json", "other kind", 0, None)],
        "row.json: cannot be read: no regular file",
    ),
    ("train", f"{MODEL} --trajectories store --method t3d --output out", "model store",
     [("store/manifest.json", "text", 0, DEEP)], "not valid JSON: nested too deeply"),
    ("train", f"{MODEL} --trajectories store --method t3d --output out", "model store",
     [(STORE, "other kind", 0, None)], f"{STORE}: cannot be read: no regular file"),
    (
        "data convert",
        "upstream.json --output out.jsonl --dataset x",
        "upstream.json",
        [("upstream.json", "pipe", 0, None)],
        "upstream.json: cannot be read: no regular file",
    ),
    *[
        ("calibrate", f"{MODEL} --task own --split test --config grid.yaml --output out {wrong}",
         "model own grid.yaml", [], part)
        for wrong, part in (
            ("--max_loss=-1", "max_loss must lie in [0, 100) points, got -1"),
            ("--max_loss=.nan", "max_loss must lie in [0, 100) points, got nan"),
            ("--confidence=1", "confidence must lie between 0 and 1, got 1"),
        )
    ],
    ("report", "rows", "rows", [("rows/results.json", "pipe", 0, None)], "no regular file"),
    ("export", "--check exported", "exported", [("exported/config.json", "pipe", 0, None)], "no r"),
    ("generate", f"{MODEL} q", "model", [(CONFIG, "pipe", 0, None)], "no regular file"),
    ("export", f"{MODEL} --output out", "model", [(CONFIG, "text", 0, "1e999")], "not a JSON obj"),
    *[
        ("compare", "compare.yaml --dry_run", "compare.yaml model own",
         [("compare.yaml", "text", 0, text)], part)
        for text, part in (
            ("model: null", "model: expected str, got None"),
            ("methods: null", "methods: expected dict, got None"),
            ("evaluation: {settings: null}", "evaluation.settings: expected tuple, got None"),
            ("model: none\nshape: {model_type: sdar, head_dim: a}", "shape: no model can have"),
            ("model: none\nshape: {hidden_size: 8}", "shape: no model can have it"),
            ("model: none\nshape: {model_type: [sdar]}", "shape: no model can have it"),
        )
    ],
    ("compare", "compare.yaml --dry_run", "compare.yaml model own",
     [(CONFIG, "text", 0, "[]")], "not a JSON object"),
    (
        "lm-eval",
        f"{MODEL} --tasks [mini] --include_path tasks --output out",
        "model tasks",
        [("tasks/problems.jsonl", "text", 0, "{}")],
        "tasks: ",
    ),
    (
        "lm-eval",
        f"{MODEL} --tasks [mini] --include_path tasks --output tasks",
        "model tasks",
        [],
        "tasks: exists already and holds mini.yaml",
    ),
    *[
        ("lm-eval", f"{MODEL} --tasks [mini] --include_path tasks --output out {option}",
         "model tasks", [], part)
        for option, part in (
            ("--limit=.inf", "limit must be a finite number, got inf"),
            ("--limit 0", "limit must be positive, got 0"),
            ("--num_fewshot=-1", "num_fewshot must not be negative, got -1"),
        )
    ],
    *[
        ("eval", f"{MODEL} --task own --output out --config grid.yaml", "model own grid.yaml",
         [("grid.yaml", "text", 0, f"settings: [{{draft_states: 4, draft_model: {name}}}]")], part)
        for name, part in (
            ("no/where", "no/where"),
            ("mini_teacher", "draft_model mini_teacher has another tokenizer or"),
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("command", "call", "read", "damages", "part"), FOUND)
def test_what_was_found(
    command: str,
    call: str,
    read: str,
    damages: list[Damage],
    part: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_small(monkeypatch)
    spelled: list[Damage] = []
    for name, kind, number, value in damages:
        path = min(inputs.glob(name))
        spelled.append((str(path.relative_to(inputs)), kind, number, value))
    case = Case(command, tuple(call.split()), tuple(read.split()), tuple(spelled))
    *problems, last = attempt(case, inputs, tmp_path / "case")
    assert not problems
    assert part in last


GROWING = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 200}


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
@pytest.mark.parametrize("times", [2, 9])
def test_tokenizers_that_grow_texts(
    part: str, times: int, inputs: Path, tmp_path: Path, t3d: Run
) -> None:
    model = shutil.copytree(inputs / "model", tmp_path / "model")
    document = json.loads((model / "tokenizer.json").read_text())
    # Rules may be nested, and those of pieces have another name.
    inner = {"type": "Sequence", "normalizers": [GROWING] * times}
    document[part] = {"type": "Sequence", "normalizers": [inner], "pretokenizers": [inner]}
    (model / "tokenizer.json").write_text(json.dumps(document))
    outcome = t3d("generate", "--model", model, "q")
    assert_refused(outcome, 1, f"tokenizer.json: the {part} makes more than 1000 characters of one")


def test_links_out_of_a_folder_that_is_converted(inputs: Path, tmp_path: Path, t3d: Run) -> None:
    source = shutil.copytree(inputs / "ar", tmp_path / "ar")
    (source / "config.json").rename(tmp_path / "elsewhere.json")
    (source / "config.json").symlink_to(tmp_path / "elsewhere.json")
    outcome = t3d("convert", source, "--output", tmp_path / "out")
    assert_refused(outcome, 1, f"{source}/config.json: a link out of its directory")
    assert not (tmp_path / "out").exists()


def test_a_command_that_is_stopped_while_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("t3d.cli.main.main", stop)
    assert start() == 130
    assert capsys.readouterr().err == "\nt3d: stopped\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_calls_end_in_a_sentence(
    command: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch)

    @settings(ONCE, max_examples=5)
    @given(cases(command, inputs))
    def try_one(case: Case) -> None:
        # Which a test would have to stop.
        assume(not case.asks_for_much)
        *problems, _ = attempt(case, inputs, tmp_path / "case", seconds=60)
        assert not problems, (problems, case.to_json())

    try_one()
