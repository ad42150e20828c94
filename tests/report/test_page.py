from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from t3d.evaluation.results import ResultRow
from t3d.report.page import write_report
from t3d.report.tables import markdown_tables
from t3d.report.trajectories import TrajectoryView


def test_report_is_whole(make_rows: Callable[..., list[ResultRow]], tmp_path: Path) -> None:
    rows = make_rows(methods=("t3d", "original"))
    shown = TrajectoryView("t3d", ["a", "b"], [0, 0], [-0.1, -0.2], 0, 4, True, 1)
    out = tmp_path / "new" / "report"
    write_report(out, rows, [("How many?", "2", [shown])])
    assert {p.name for p in out.iterdir()} == {"report.md", "accuracy.png", "trajectories.html"}
    report = (out / "report.md").read_text(encoding="utf-8")
    assert markdown_tables(rows) in report
    assert re.findall(r"\]\((.*?)\)", report) == ["accuracy.png", "trajectories.html"]


def test_report_without_problems_has_no_page(
    make_rows: Callable[..., list[ResultRow]], tmp_path: Path
) -> None:
    write_report(tmp_path, make_rows(methods=("t3d",)))
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "accuracy.png"}
    assert "trajectories.html" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_nothing_is_written_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no result rows"):
        write_report(tmp_path / "report", [])
    assert not (tmp_path / "report").exists()
