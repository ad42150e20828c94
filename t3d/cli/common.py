"""What the commands share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from t3d.evaluation.results import ResultRow, load_results

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def show(*parts: RenderableType) -> None:
    """Print tables or texts on stdout."""
    from rich.console import Console

    Console().print(*parts)


def plan_table(rows: Iterable[tuple[str, str, str]]) -> Table:
    """What a recipe will do: stage, what, value."""
    from rich.table import Table

    table = Table("stage", "what", "value", box=None)
    before = None
    for stage, what, value in rows:
        table.add_row("" if stage == before else stage, what, value)
        before = stage
    return table


def print_paths(directory: Path, *names: str) -> None:
    """Where the results lie, one path a line."""
    for path in [directory / name for name in names] or [directory]:
        print(path)


def distinct_rows(runs: Iterable[Path]) -> list[ResultRow]:
    """The rows of several runs; one that runs share, such as the original's, counts once."""
    rows: dict[ResultRow, ResultRow] = {}
    for directory in runs:
        for row in load_results(directory / "results.json"):
            # Timings differ between runs of the same.
            key = dataclasses.replace(row, tokens_per_second=0.0, latency_seconds=None)
            rows.setdefault(key, row)
    return list(rows.values())
