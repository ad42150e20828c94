"""What the commands share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t3d.evaluation.results import Condition, ResultRow, load_results

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
    """The rows of several runs; one that runs share, such as the original's, counts once.

    Args:
        runs: folders that hold a results.json, or such files.

    Raises:
        ValueError: for results that cannot be read, and for two different ones of one checkpoint
            under one setting.
    """
    found: dict[Any, tuple[Path, ResultRow]] = {}
    for run in runs:
        for row in load_results(results_file(run)):
            other, first = found.setdefault((Condition.of(row), row.method, row.seed), (run, row))
            if _untimed(row) != _untimed(first):
                raise ValueError(
                    f"{run}: another result of {row.method}, seed {row.seed}, on {row.task} than "
                    f"in {other}, both for {row.decoding.name}; report one of them, or give one a "
                    "method name of its own"
                )
    return [row for _, row in found.values()]


def results_file(run: Path) -> Path:
    return run if run.suffix == ".json" else run / "results.json"


def _untimed(row: ResultRow) -> ResultRow:
    """The row without its timings, which differ between runs of the same."""
    return dataclasses.replace(row, tokens_per_second=0.0, latency_seconds=None)
