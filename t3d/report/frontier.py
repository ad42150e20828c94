"""The speed-accuracy frontier as tables, a figure and files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import RenderableType

from t3d.core.files import write_bytes, write_json
from t3d.evaluation.frontier import ALPHA, TOLERANCE, Frontier, Point, frontier
from t3d.evaluation.results import DYNAMIC, STATIC, ResultRow
from t3d.report.plots import INK, SOFT, method_styles, style_axes
from t3d.report.sheets import (
    Entry,
    Section,
    Sheet,
    order_methods,
    percent,
    render_markdown,
    render_terminal,
)
from t3d.report.tables import Setting

FORMAT = 1
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_FILLS = {STATIC: "full", DYNAMIC: "none", "sequential": "left", "random": "bottom"}
_FILL_NAMES = {"full": "filled", "none": "hollow", "left": "left half", "bottom": "lower half"}
_DASHES = ("-", "--", ":", "-.")


def write_frontier(
    output: Path, rows: Sequence[ResultRow], *, provenance: Mapping[str, Any]
) -> None:
    """Write `frontier.json`, `frontier.png` and `frontier.md` into a directory, each atomically.

    Raises:
        ValueError: for rows that `t3d.evaluation.frontier.frontier` refuses.
    """
    found = frontier(rows)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "frontier.json", _document(found, provenance))
    data = io.BytesIO()
    frontier_figure(found).savefig(data, format="png", facecolor="white")
    write_bytes(output / "frontier.png", data.getvalue())
    figure = "![Accuracy against decoding speed](frontier.png)"
    text = f"# Frontier\n\n{figure}\n\n{render_markdown(_sections(found))}"
    write_bytes(output / "frontier.md", text.encode())


def frontier_terminal(rows: Sequence[ResultRow]) -> RenderableType:
    """The tables for a terminal of 80 columns or more.

    Raises:
        ValueError: for rows that `t3d.evaluation.frontier.frontier` refuses.
    """
    return render_terminal(_sections(frontier(rows)))


def _document(found: Frontier, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What `frontier.json` holds."""
    return {
        "format": FORMAT,
        "provenance": dict(provenance),
        "alpha": ALPHA,
        "tolerance": TOLERANCE,
        "scores": [asdict(score) for score in found.scores],
        "points": [asdict(point) for point in found.points],
    }


def _panels(found: Frontier) -> dict[tuple[str, float], dict[str, list[Point]]]:
    """(task, temperature) -> name -> points, in the order of tables and legends."""
    out: dict[tuple[str, float], dict[str, list[Point]]] = {}
    for key in dict.fromkeys((p.condition.task, p.condition.temperature) for p in found.points):
        own = [p for p in found.points if (p.condition.task, p.condition.temperature) == key]
        out[key] = {
            name: [p for p in own if p.name == name] for name in order_methods(p.name for p in own)
        }
    return out


def _sections(found: Frontier) -> list[Section]:
    return [
        (
            f"{task}, temperature {temperature:g}, n = {next(iter(panel.values()))[0].n}",
            [_score_sheet(found, task, temperature, list(panel)), _point_sheet(panel)],
        )
        for (task, temperature), panel in _panels(found).items()
    ]


def _score_sheet(found: Frontier, task: str, temperature: float, names: list[str]) -> Sheet:
    own = {s.name: s for s in found.scores if (s.task, s.temperature) == (task, temperature)}
    highest = max(score.aup for score in own.values())
    lines = [
        [
            Entry(name),
            Entry(f"{score.aup:.1f}", bold=len(own) > 1 and score.aup == highest),
            Entry(f"{score.num_kept} of {score.num_points}"),
            Entry(f"{score.fastest:.2f}"),
            Entry(percent(score.best)),
        ]
        for name, score in ((name, own[name]) for name in names)
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
    for name, points in panel.items():
        group = []
        for p in points:
            setting, _, steps = Setting.of(p.condition).label.partition("\n")
            low, high = p.ci95
            line = [
                Entry(name),
                Entry(setting, f"({steps})"),
                Entry(str(p.condition.block_size)),
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


def frontier_figure(found: Frontier) -> Figure:
    """A row a task and temperature: accuracy against tokens per forward, and per second.

    Lines join the frontier of a method; what it dominates is pale. The marker's shape is
    the block size, its filling the remasking. Bars are the intervals of `Point.ci95`.
    """
    panels = _panels(found)
    names = order_methods(p.name for p in found.points)
    styles = method_styles(names)
    colours = [colour for colour, _ in styles.values()]
    # Where colours run out, the dash tells methods apart.
    looks = {
        name: (colour, _DASHES[colours[:i].count(colour) % len(_DASHES)])
        for i, (name, (colour, _)) in enumerate(styles.items())
    }
    sizes = sorted({p.condition.block_size for p in found.points})
    markers = dict(zip(sizes, cycle(_MARKERS)))
    figure = Figure(figsize=(11, 1.9 + 3.9 * len(panels)), dpi=200, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, hspace=0.06)  # type: ignore[union-attr]
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 2, squeeze=False, sharey="row")
    for row, ((task, temperature), panel) in zip(grid, panels.items(), strict=True):
        for axes, seconds in zip(row, (False, True), strict=True):
            for name, points in panel.items():
                _draw(axes, points, seconds, looks[name], markers)
            axes.margins(x=0.06, y=0.08)
            axes.set_ylim(bottom=0)
            style_axes(axes)
        num = next(iter(panel.values()))[0].n
        title = f"{task}, temperature {temperature:g}, n = {num}; bars are 95 % intervals"
        several = any(len(p.seeds) > 1 for points in panel.values() for p in points)
        title += "; means over seeds" if several else ""
        row[0].set_title(title, loc="left", fontsize=11, color=SOFT)
        row[0].set_ylabel("accuracy (%)", fontsize=11, color=INK)
    for axes, unit in zip(grid[-1], ("forward pass", "second"), strict=True):
        axes.set_xlabel(f"tokens per {unit}", fontsize=11, color=INK)
    figure.suptitle(
        "Accuracy against decoding speed; lines join the settings that no other beats",
        x=0.012,
        ha="left",
        fontsize=13,
        fontweight="bold",
        color=INK,
    )
    _legend(figure, found, looks, markers)
    return figure


def _draw(
    axes: Axes,
    points: Sequence[Point],
    seconds: bool,
    look: tuple[str, str],
    markers: Mapping[int, str],
) -> None:
    """One method in one panel."""
    colour, dash = look
    place = {
        p: (p.tokens_per_second if seconds else p.tokens_per_forward, 100 * p.accuracy)
        for p in points
    }
    best = {p for p in points if (p.pareto_seconds if seconds else p.pareto)}
    line = sorted(place[p] for p in best)
    axes.plot([x for x, _ in line], [y for _, y in line], dash, color=colour, linewidth=1.8)
    for p, (x, y) in place.items():
        fill = _FILLS.get(p.condition.remasking, "top")
        axes.errorbar(
            x,
            y,
            # A mean of rounded numbers may leave -1e-17.
            [[max(0.0, y - 100 * p.ci95[0])], [max(0.0, 100 * p.ci95[1] - y)]],
            fmt=markers[p.condition.block_size],
            fillstyle=fill,
            color=colour,
            markerfacecoloralt="white",
            markerfacecolor="white" if fill == "none" else colour,
            markeredgecolor=colour,
            markeredgewidth=1.4,
            markersize=7,
            elinewidth=1,
            capsize=2,
            alpha=1 if p in best else 0.3,
            clip_on=False,
            zorder=4 if p in best else 2.5,
        )


def _legend(
    figure: Figure,
    found: Frontier,
    looks: Mapping[str, tuple[str, str]],
    markers: Mapping[int, str],
) -> None:
    """Methods by line, block sizes by marker, remasking by filling."""
    handles = [
        Line2D([], [], color=colour, ls=dash, linewidth=2.4, label=name)
        for name, (colour, dash) in looks.items()
    ]
    grey: dict[str, Any] = {"color": SOFT, "ls": "", "markersize": 7.5, "markeredgewidth": 1.4}
    handles += [
        Line2D([], [], marker=marker, label=f"block size {size}", **grey)
        for size, marker in markers.items()
    ]
    kinds = sorted({p.condition.remasking for p in found.points}, key=lambda k: (k != STATIC, k))
    for kind in kinds:
        fill = _FILLS.get(kind, "top")
        label = f"{_FILL_NAMES.get(fill, 'upper half')}: {kind.removeprefix('low_confidence_')}"
        faces: dict[str, Any] = {
            "fillstyle": fill,
            "markerfacecolor": "white" if fill == "none" else SOFT,
        }
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                markerfacecoloralt="white",
                label=label,
                **grey,
                **faces,
            )
        )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(5, len(handles)),
        frameon=False,
        fontsize=10,
        labelcolor=INK,
        columnspacing=2,
    )
