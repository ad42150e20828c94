"""The report of rows from several places: tables and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t3d.core.files import write_bytes
from t3d.evaluation.frontier import points_of
from t3d.evaluation.results import ResultRow
from t3d.report.figure import frontier_figure, save
from t3d.report.frontier import panels
from t3d.report.tables import markdown_tables


def write_report(directory: Path, rows: Sequence[ResultRow]) -> None:
    """Write `report.md` and `accuracy.png`, each atomically.

    Raises:
        ValueError: if there are no rows, or two for one checkpoint, task and setting.
    """
    tables = markdown_tables(rows)
    directory.mkdir(parents=True, exist_ok=True)
    save(frontier_figure(panels(points_of(rows))), directory / "accuracy.png")
    figure = "![Accuracy against decoding speed](accuracy.png)"
    write_bytes(directory / "report.md", f"# Results\n\n{figure}\n\n{tables}".encode())
