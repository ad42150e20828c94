"""All figures, in one look, with one colour and marker for each method."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from t3d.core.files import write_bytes
from t3d.decoding.config import DYNAMIC, STATIC
from t3d.evaluation.frontier import Point
from t3d.report.sheets import order_methods, style

if TYPE_CHECKING:
    # It imports torch, which reports do without.
    from t3d.evaluation.comparison import Comparison

TrainingLog = tuple[str, Sequence[Mapping[str, Any]]]
"""A student's path among checkpoints, and what its training logged: rows of `step` and metrics."""

INK, SOFT, GRID = "#222222", "#666666", "#e4e4e4"
_TEXT: dict[str, Any] = {"fontsize": 11, "color": INK}
_TITLE: dict[str, Any] = {
    "x": 0.012,
    "ha": "left",
    "fontweight": "bold",
    "color": INK,
    "wrap": True,
}
_DODGE = 0.05
"""Distance in octaves between methods of one speed, so that their error bars stay apart."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_FILLS = {STATIC: "full", DYNAMIC: "none", "sequential": "left", "random": "bottom"}
_FILL_NAMES = {"full": "filled", "none": "hollow", "left": "left half", "bottom": "lower half"}

Panel = tuple[str, Mapping[str, Sequence[Point]]]
"""A title, and the points of each name."""


def png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", facecolor="white")
    return data.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, atomically."""
    write_bytes(path, png(figure))


def comparison_figure(c: Comparison, recommended: str | None = None) -> Figure:
    """Accuracy against tokens a step: a panel a block size, a row a task and temperature.

    A line a method over the static settings; bars are the 95 % intervals of
    `Comparison.accuracy`. Methods are shifted sideways a little. Of several settings of one speed
    the first is drawn.
    """
    static = [one for conditions in c.speeds.values() for one in conditions]
    assert static, "there is nothing to draw without static settings"
    tasks = sorted({(one.task, one.decoding.temperature) for one in static})
    sizes = sorted({one.decoding.block_size for one in static})
    methods = order_methods(c.methods)
    speeds = sorted({one.decoding.tokens_per_step for one in static})
    band = 2.0 ** (_DODGE * (len(methods) + 1) / 2)
    figure = _figure(max(8, 5 * len(sizes)), len(tasks))
    panels = figure.subplots(len(tasks), len(sizes), squeeze=False, sharex="all", sharey="row")
    for row, (task, temperature) in zip(panels, tasks, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            here = (task, temperature, size)
            curve = {}
            for one in sorted(static, key=lambda one: one.rank):
                d = one.decoding
                if (one.task, d.temperature, d.block_size) == here:
                    curve.setdefault(d.tokens_per_step, one)
            for place, method in enumerate(methods):
                shift = 2.0 ** (_DODGE * (place - (len(methods) - 1) / 2))
                found = {x * shift: c.accuracy(method, one) for x, one in curve.items()}
                own = {x: e for x, e in found.items() if e is not None}
                colour, marker = style(method)
                front = method == (recommended or "t3d")
                axes.errorbar(
                    list(own),
                    [100 * e.value for e in own.values()],
                    _bars([(e.low, e.value, e.high) for e in own.values()]),
                    color=colour,
                    marker=marker,
                    markeredgecolor="white",
                    markersize=7.5,
                    linewidth=3 if front else 1.4,
                    elinewidth=1.2,
                    capsize=2.5,
                    clip_on=False,
                    zorder=5 if front else 3,
                )
            title = f"{task}, block size {size}, temperature {temperature:g}"
            axes.set_title(title, loc="left", fontsize=11, color=SOFT)
            axes.set_xscale("log", base=2)
            for speed in speeds:
                axes.axvspan(speed / band, speed * band, color="#f5f5f5", linewidth=0, zorder=0)
            axes.xaxis.set_major_locator(FixedLocator(speeds))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda speed, _: f"{speed:.3g}")
            _finish(axes)
        row[0].set_ylabel("accuracy (%)", **_TEXT)
    for axes in panels[-1]:
        axes.set_xlabel("tokens per step", **_TEXT)
    over = "problems, one seed each" if c.has_one_seed else "seeds and problems"
    title = f"Accuracy as each step commits more tokens, with 95 % intervals over {over}"
    figure.suptitle(title, fontsize=12.5, **_TITLE)
    handles = []
    for method in methods:
        colour, marker = style(method)
        look: dict[str, Any] = {"color": colour, "marker": marker, "markeredgecolor": "white"}
        look |= {"markersize": 8.5, "linewidth": 3 if method == recommended else 1.6}
        label = f"{method} (recommended)" if method == recommended else method
        handles.append(Line2D([], [], label=label, **look))
    _legend(figure, handles)
    return figure


def frontier_figure(panels: Sequence[Panel]) -> Figure:
    """Accuracy against tokens per forward pass, and per second: a row a panel.

    Lines join the frontier of a method; points below it are pale. The marker's shape is the block
    size, its filling the remasking. Bars are the intervals of `Point.ci95`.
    """
    points = [p for _, panel in panels for own in panel.values() for p in own]
    names = order_methods(p.name for p in points)
    sizes = sorted({p.condition.decoding.block_size for p in points})
    markers = dict(zip(sizes, cycle(_MARKERS)))
    figure = _figure(11, len(panels))
    grid = figure.subplots(len(panels), 2, squeeze=False, sharey="row")
    for row, (title, panel) in zip(grid, panels, strict=True):
        for axes, seconds in zip(row, (False, True), strict=True):
            for name, own in panel.items():
                _draw(axes, own, seconds, style(name)[0], markers)
            axes.margins(x=0.06, y=0.08)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            _finish(axes)
        several = any(len(p.seeds) > 1 for own in panel.values() for p in own)
        title = f"{title}; bars are 95 % intervals" + ("; means over seeds" if several else "")
        row[0].set_title(title, loc="left", fontsize=11, color=SOFT)
        row[0].set_ylabel("accuracy (%)", **_TEXT)
    for axes, unit in zip(grid[-1], ("forward pass", "second"), strict=True):
        axes.set_xlabel(f"tokens per {unit}", **_TEXT)
    title = "Accuracy against decoding speed; lines join the settings that no other beats"
    figure.suptitle(title, fontsize=13, **_TITLE)
    handles = [Line2D([], [], color=style(n)[0], linewidth=2.4, label=n) for n in names]
    grey: dict[str, Any] = {"color": SOFT, "ls": "", "markersize": 7.5, "markeredgewidth": 1.4}
    handles += [
        Line2D([], [], marker=marker, label=f"block size {size}", **grey)
        for size, marker in markers.items()
    ]
    kinds = {p.condition.decoding.remasking for p in points}
    for kind in sorted(kinds, key=lambda k: (k != STATIC, k)):
        fill = _FILLS.get(kind, "top")
        label = f"{_FILL_NAMES.get(fill, 'upper half')}: {kind.removeprefix('low_confidence_')}"
        handles.append(Line2D([], [], marker="o", label=label, **grey, **_face(fill, SOFT)))
    _legend(figure, handles)
    return figure


def training_figure(logs: Sequence[TrainingLog]) -> Figure:
    """Loss, and few-step accuracy where it was watched, against optimizer steps: a line a student.

    Losses of different methods are different quantities: only their course compares.
    """
    metrics = {"loss": (1, "loss"), "few_step_accuracy": (100, "few-step accuracy (%)")}
    found = {key for _, rows in logs for row in rows for key in metrics.keys() & row.keys()}
    shown = {key: metrics[key] for key in metrics if key in found}
    figure = _figure(11, 1)
    [panels] = figure.subplots(1, len(shown), squeeze=False)
    for axes, (key, (scale, label)) in zip(panels, shown.items(), strict=True):
        for name, rows in logs:
            points = [(row["step"], scale * float(row[key])) for row in rows if key in row]
            colour, _ = style(name.partition("/")[0])
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8)
        axes.set_title(label, loc="left", fontsize=11, color=SOFT)
        axes.set_xlabel("optimizer steps", **_TEXT)
        _finish(axes)
    names = order_methods({name.partition("/")[0] for name, _ in logs})
    _legend(figure, [Line2D([], [], color=style(n)[0], linewidth=2.4, label=n) for n in names])
    return figure


def _draw(
    axes: Axes, points: Sequence[Point], seconds: bool, colour: str, markers: Mapping[int, str]
) -> None:
    """One method in one panel."""
    place = {
        p: (p.tokens_per_second if seconds else p.tokens_per_forward, 100 * p.accuracy)
        for p in points
    }
    best = {p for p in points if (p.pareto_seconds if seconds else p.pareto)}
    line = sorted(place[p] for p in best)
    axes.plot([x for x, _ in line], [y for _, y in line], color=colour, linewidth=1.8)
    for p, (x, y) in place.items():
        axes.errorbar(
            x,
            y,
            _bars([(p.ci95[0], p.accuracy, p.ci95[1])]),
            fmt=markers[p.condition.decoding.block_size],
            color=colour,
            **_face(_FILLS.get(p.condition.decoding.remasking, "top"), colour),
            markeredgecolor=colour,
            markeredgewidth=1.4,
            markersize=7,
            elinewidth=1,
            capsize=2,
            alpha=1 if p in best else 0.3,
            clip_on=False,
            zorder=4 if p in best else 2.5,
        )


def _face(fill: str, colour: str) -> dict[str, Any]:
    own = "white" if fill == "none" else colour
    return {"fillstyle": fill, "markerfacecolor": own, "markerfacecoloralt": "white"}


def _bars(intervals: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """Lengths below and above of (low, value, high), in %."""
    # Rounding may give -1e-17 in place of 0.
    below = [max(0.0, 100 * (value - low)) for low, value, _ in intervals]
    return [below, [max(0.0, 100 * (high - value)) for _, value, high in intervals]]


def _figure(width: float, num_rows: int) -> Figure:
    figure = Figure(figsize=(width, 1.9 + 3.9 * num_rows), dpi=200, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, hspace=0.06)  # type: ignore[union-attr]
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Axes) -> None:
    """Light horizontal rules, no box."""
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    axes.tick_params(labelsize=10.5, labelcolor=INK, color="#bbbbbb", left=False)


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(5, len(handles)),
        frameon=False,
        fontsize=10.5,
        labelcolor=INK,
        columnspacing=2.2,
    )
