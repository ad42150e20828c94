"""The notebook runs from top to bottom and says what its stored outputs say."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
PERCENT = re.compile(r"\d+(?=%)")
POINTS = 15
"""Percent that an accuracy may differ by, as rounding depends on machine and release."""


def test_the_notebook_gives_its_stored_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, object] = {}
    accuracies: list[int] = []
    for number, cell in enumerate(codes, start=1):
        assert cell["execution_count"] == number
        [stored] = cell["outputs"]
        assert stored["name"] == "stdout"
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        told, expected = capsys.readouterr().out, "".join(stored["text"])
        assert PERCENT.sub("", told) == PERCENT.sub("", expected)
        found = [int(text) for text in PERCENT.findall(told)]
        assert found == pytest.approx([int(text) for text in PERCENT.findall(expected)], abs=POINTS)
        accuracies += found
    *_, teacher, student = accuracies
    assert student > teacher + 50
    assert list(tmp_path.glob("*/student/model.safetensors"))
