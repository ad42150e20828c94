"""What a machine lacks, and what files may hold: one sentence each, in bounded time."""

from __future__ import annotations

import json
import re
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest

from t3d.evaluation.results import save_results
from t3d.models import limits
from tests.cli.conftest import Run
from tests.cli.test_bad_input import assert_refused
from tests.evaluation.test_results import ROW


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (MemoryError(), "the memory does not suffice; give smaller sizes"),
        (RuntimeError("x: you tried to allocate 3"), None),
        (RuntimeError("[..] can't allocate memory: you tried to allocate 12 bytes."), "12 bytes"),
        (RuntimeError("CUDA out of memory. Tried"), "the memory does not suffice"),
    ],
)
def test_memory(
    monkeypatch: pytest.MonkeyPatch, t3d: Run, error: Exception, part: str | None
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("t3d.cli.main.parse", fail)
    if part is None:
        with pytest.raises(RuntimeError):
            t3d("generate", "q")
    else:
        assert_refused(t3d("generate", "q"), 1, part)


@pytest.mark.parametrize("command", ["train", "export", "report", "rollout"])
def test_full_disks(checkpoint: Path, store: Path, tmp_path: Path, t3d: Run, command: str) -> None:
    runs, output = tmp_path / "runs", tmp_path / "out"
    runs.mkdir()
    save_results(runs / "results.json", [ROW], {})
    short = ("--training.batch_size", 4, "--training.micro_batch_size", 4, "--progress", "false")
    calls = {
        "train": ("--trajectories", store, "--method", "naive_td", "--training.steps", 1, *short),
        "export": (),
        "report": (runs,),
        "rollout": ("--num_prompts", 2, "--decoding.max_new_tokens", 8, "--progress", "false"),
    }
    model = () if command == "report" else ("--model", checkpoint)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The largest file that may be written stands for the room on a disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        outcome = t3d(command, *calls[command], *model, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert re.match(rf"t3d: error: {output}\S*: cannot be written\W+File too large", last), last


def test_blocks_longer_than_the_model(
    checkpoint: Path, store: Path, tmp_path: Path, t3d: Run
) -> None:
    size = ("--training.batch_size", 4, "--training.micro_batch_size", 4, "--progress", "false")
    fixed = ("--model", checkpoint, "--training.block_sizes", "[1000000]", *size)
    call = ("train", *fixed, "--trajectories", store, "--method", "t3d")
    part = "training.block_sizes: 1000000 is more than the 256 positions of "
    outcome = t3d(*call, "--output", tmp_path / "student")
    assert outcome.code == 1
    assert part in outcome.err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("num_examples: 64\n")
    outcome = t3d("pretrain", recipe, *fixed, "--output", tmp_path / "teacher")
    assert outcome.code == 1
    assert part in outcome.err


CHECKPOINTS = [
    ("generation_config.json", '{"eos_token_id": [[1]]}', "eos_token_id [1] is no token of"),
    ("generation_config.json", '{"a": ' * 9999, "generation_config.json: not valid JSON: nested"),
    ("config.json", "[" * 9999, "config.json: not valid JSON: nested too deeply"),
    ("chat_template.jinja", "{{ 1 // 0 }}", "chat template is missing or broken"),
    ("chat_template.jinja", "{% include 'x' %}", "chat template is missing or broken"),
    ("chat_template.jinja", "{{ messages[5].content.x.y }}", "chat template is missing or broken"),
]


@pytest.mark.parametrize(("name", "text", "part"), CHECKPOINTS)
def test_wrong_checkpoints(
    checkpoint: Path, tmp_path: Path, t3d: Run, name: str, text: str, part: str
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / name).write_text(text)
    outcome = t3d("generate", "--model", model, "q")
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"t3d: error: {model}")
    assert part in last


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
        "{{ messages[0].content * 99999 }}",
        "{{ 'x' * 10 ** 18 }}",
        "{{ 'x' * 3000000000 }}",
        "{{ ('x' * 60000).replace('x', 'x' * 60000) }}",
        "{{ '%3000000000d' % 1 }}",
    ],
)
def test_templates_without_end(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    t3d: Run,
    template: str,
) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_SECONDS", 0.5)
    before = threading.active_count()
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    outcome = t3d("generate", "--model", model, "q")
    assert outcome.code == 1
    assert "chat template is missing or broken, or prints without end" in outcome.err
    time.sleep(0.2)
    # The loop ends with its time.
    assert threading.active_count() <= before


def test_half_a_character(checkpoint: Path, tmp_path: Path, t3d: Run) -> None:
    questions = tmp_path / "questions.jsonl"
    call = ("--model", checkpoint, "--output", tmp_path / "out")
    for row, part in (
        ({"question": "\ud800?", "answer": "1"}, "holds half a character ('\\ud800')"),
        ({"question": "x", "answer": "\udc00"}, "holds half a character ('\\udc00')"),
    ):
        questions.write_text(f"{json.dumps(row)}\n")
        outcome = t3d("eval", *call, "--task", questions)
        assert_refused(outcome, 1, f"{questions}, line 1: ", part)
        outcome = t3d("rollout", *call, "--prompts", questions)
        assert_refused(outcome, 1, f"{questions}, line 1: ", part)
    questions.write_text("[" * 9999)
    outcome = t3d("eval", *call, "--task", questions)
    assert_refused(outcome, 1, f"{questions}, line 1: ", "nested too deeply")
    outcome = t3d("generate", "--model", checkpoint, "\udcff")
    assert outcome.code == 1
    assert "question: the text holds half a character ('\\udcff')" in outcome.err
    (tmp_path / "results.json").write_text("[" * 9999)
    assert_refused(t3d("report", tmp_path), 1, "results.json: not a results file: nested")
