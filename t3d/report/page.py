"""The report of a run: tables, a figure, and the page of trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t3d.evaluation.results import ResultRow
from t3d.report.plots import accuracy_plot
from t3d.report.tables import markdown_tables
from t3d.report.trajectories import Problem, write_html


def write_report(
    directory: Path, rows: Sequence[ResultRow], problems: Sequence[Problem] = ()
) -> None:
    """Write `report.md`, `accuracy.png` and, given problems, `trajectories.html`, atomically.

    Raises:
        ValueError: if there are no rows, or two for one checkpoint, task and setting.
    """
    tables = markdown_tables(rows)
    directory.mkdir(parents=True, exist_ok=True)
    accuracy_plot(rows, directory / "accuracy.png")
    if problems:
        write_html(directory / "trajectories.html", problems)
    figure = "![Accuracy against tokens per forward pass](accuracy.png)"
    pages = "[Decoding trajectories](trajectories.html), token by token.\n\n" if problems else ""
    partial = directory / "report.md.partial"
    partial.write_text(f"# Results\n\n{figure}\n\n{pages}{tables}", encoding="utf-8")
    partial.replace(directory / "report.md")
