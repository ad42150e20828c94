"""Rows and their speed-accuracy frontier as pages of a figure and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t3d.core.files import write_bytes, write_json
from t3d.decoding.config import labels, one_line
from t3d.evaluation.frontier import ALPHA, TOLERANCE, Frontier, Point, Score, points_of
from t3d.evaluation.results import ResultRow
from t3d.report.figure import Panel, frontier_figure, save
from t3d.report.sheets import (
    Entry,
    Section,
    Sheet,
    order_methods,
    percent,
    render_markdown,
)
from t3d.report.tables import result_sections

FORMAT = 2


def write_report(directory: Path, rows: Sequence[ResultRow]) -> None:
    """Write `accuracy.png` and `report.md`, each atomically.

    Raises:
        ValueError: if there are no rows, or two for one checkpoint, task and setting.
    """
    sections = result_sections(rows)
    _write_page(directory / "report.md", "Results", "accuracy.png", points_of(rows), sections)


def write_frontier(output: Path, found: Frontier, *, provenance: Mapping[str, Any]) -> None:
    """Write `frontier.json`, `frontier.png` and `frontier.md` into a directory, each atomically."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "frontier.json", _document(found, provenance))
    sections = frontier_sections(found)
    _write_page(output / "frontier.md", "Frontier", "frontier.png", found.points, sections)


def _write_page(
    path: Path, title: str, picture: str, points: Sequence[Point], sections: Sequence[Section]
) -> None:
    """Write the figure of points beside a page that shows it above tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(frontier_figure(panels(points)), path.with_name(picture))
    figure = f"![Accuracy against decoding speed]({picture})"
    write_bytes(path, f"# {title}\n\n{figure}\n\n{render_markdown(sections)}".encode())


def _document(found: Frontier, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `frontier.json`."""
    return {
        "format": FORMAT,
        "provenance": dict(provenance),
        "alpha": ALPHA,
        "tolerance": TOLERANCE,
        "scores": [asdict(score) for score in found.scores],
        "points": [asdict(p) | {"condition": p.condition.document()} for p in found.points],
    }


def _groups(points: Sequence[Point]) -> dict[tuple[str, float], dict[str, list[Point]]]:
    """(task, temperature) -> name -> points, in the order of tables and legends."""
    out: dict[tuple[str, float], dict[str, list[Point]]] = {}
    order = order_methods(p.name for p in points)
    for p in sorted(points, key=lambda p: order.index(p.name)):
        where = p.condition.task, p.condition.decoding.temperature
        out.setdefault(where, {}).setdefault(p.name, []).append(p)
    return dict(sorted(out.items()))


def panels(points: Sequence[Point]) -> list[Panel]:
    """The panels of `frontier_figure`."""
    return [(_title(where, group), group) for where, group in _groups(points).items()]


def _title(where: tuple[str, float], group: Mapping[str, Sequence[Point]]) -> str:
    counts = sorted({p.n for points in group.values() for p in points})
    return f"{where[0]}, temperature {where[1]:g}, n = {' or '.join(map(str, counts))}"


def frontier_sections(found: Frontier) -> list[Section]:
    """One for each task and temperature."""
    scores = {(score.task, score.temperature, score.name): score for score in found.scores}
    return [
        (
            _title(where, group),
            [_score_sheet([scores[*where, name] for name in group]), _point_sheet(group)],
        )
        for where, group in _groups(found.points).items()
    ]


def _score_sheet(scores: Sequence[Score]) -> Sheet:
    highest = max(score.aup for score in scores)
    lines = [
        [
            Entry(score.name),
            Entry(f"{score.aup:.1f}", bold=len(scores) > 1 and score.aup == highest),
            Entry(f"{score.num_kept} of {score.num_points}"),
            Entry(f"{score.fastest:.2f}"),
            Entry(percent(score.best)),
        ]
        for score in scores
    ]
    note = (
        "AUP: area under accuracy in % against tokens per forward, weighted by "
        f"exp(-{ALPHA:g} (1 - y / y_max)), y_max the best accuracy of any method on the task "
        f"(d3LLM). Settings kept lose at most {100 * TOLERANCE:g} points to the method's slowest "
        "setting; fastest is the fastest of them, best the best of all."
    )
    header = ["method", "AUP", "settings\nkept", "fastest (tokens/\nforward)", "best\n(%)"]
    return Sheet("Accuracy under parallelism", header, [lines], note, num_names=1)


def _point_sheet(panel: Mapping[str, Sequence[Point]]) -> Sheet:
    several = any(len(p.seeds) > 1 for points in panel.values() for p in points)
    groups = []
    settings = [p.condition.decoding for points in panel.values() for p in points]
    names = labels(settings, beside=("block_size", "temperature"))
    for name, points in panel.items():
        group = []
        for p in points:
            setting, _, steps = names[p.condition.decoding].partition("\n")
            low, high = p.ci95
            line = [
                Entry(name),
                Entry(setting, f"({one_line(steps)})"),
                Entry(str(p.condition.decoding.block_size)),
                Entry(percent(p.accuracy), f"[{percent(low)}, {percent(high)}]"),
                _speed(f"{p.tokens_per_forward:.2f}", p.pareto),
                _speed(f"{p.tokens_per_second:.1f}", p.pareto_seconds),
            ]
            group.append([*line, Entry(str(len(p.seeds)))] if several else line)
        groups.append(group)
    note = (
        "●: on the frontier, no other setting of the method is at least as fast and as accurate "
        "and better in one. Brackets: Wilson 95 % intervals."
        + (" Numbers are means over seeds, also the ends of intervals." if several else "")
    )
    header = ["method", "setting", "block", "accuracy\n(%)", "tokens/\nforward", "tokens/\ns"]
    header += ["seeds"] if several else []
    return Sheet("Settings, slow to fast", header, groups, note)


def _speed(number: str, on_frontier: bool) -> Entry:
    return Entry(f"● {number}" if on_frontier else number)
