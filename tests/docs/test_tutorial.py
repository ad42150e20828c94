"""The tutorial's commands for the shipped model, one after another, but on less data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, t3d  # noqa: F401, a fixture
from tests.cli.test_documents import ROOT, commands

TUTORIAL = ROOT / "docs" / "tutorial.md"
SMALL = {
    "rollout": ("--num_prompts", 8, "--decoding.max_new_tokens", 16),
    "train": ("--training.steps", 1, "--training.batch_size", 8),
    "eval": ("--num_problems", 4, "--max_new_tokens", 16, "--measure_latency", "false"),
}


def test_the_stages_one_by_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    t3d: Run,  # noqa: F811
) -> None:
    monkeypatch.chdir(tmp_path)
    done = []
    for (tool, *call), whole in commands(TUTORIAL):
        # What follows is about a checkpoint of the reader's.
        if call and call[0] == "generate" and "M" in call:
            break
        if tool == "t3d" and whole:
            outcome = t3d(*call, *SMALL.get(call[0], ()))
            assert outcome.code == 0, f"{call}: {outcome.err}"
            done.append(call[0])
    assert done == ["rollout", "train", "eval", "eval", "report", "generate"]
    rows = json.loads(Path("runs/student_eval/results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["student"] * 2
    assert "student" in Path("runs/report/report.md").read_text()
