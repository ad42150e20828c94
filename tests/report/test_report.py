from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from t3d.evaluation.results import ResultRow
from t3d.report.frontier import write_report
from t3d.report.sheets import render_markdown
from t3d.report.tables import result_sections


def test_a_report_is_whole(make_rows: Callable[..., list[ResultRow]], tmp_path: Path) -> None:
    rows = make_rows(methods=("t3d", "original"))
    out = tmp_path / "new" / "report"
    write_report(out, rows)
    assert {p.name for p in out.iterdir()} == {"report.md", "accuracy.png"}
    report = (out / "report.md").read_text(encoding="utf-8")
    assert render_markdown(result_sections(rows)) in report
    assert re.findall(r"\]\((.*?)\)", report) == ["accuracy.png"]


def test_nothing_is_written_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no result rows"):
        write_report(tmp_path / "report", [])
    assert not (tmp_path / "report").exists()
