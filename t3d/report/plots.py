"""The frontier: accuracy against tokens per forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from t3d.evaluation.results import DYNAMIC, STATIC, ResultRow
from t3d.report.tables import Setting, method_order

INK, SOFT, GRID = "#222222", "#666666", "#e4e4e4"
# Okabe and Ito's palette, safe for colour-blind readers; a marker each as a second channel.
_STYLES = {
    "original": ("#555555", "o"),
    "sft": ("#e69f00", "s"),
    "redi": ("#56b4e9", "^"),
    "dparallel": ("#cc79a7", "v"),
    "naive_td": ("#0072b2", "D"),
    "t3d": ("#d55e00", "o"),
}
_OTHER_STYLES = (("#009e73", "P"), ("#8c6d00", "X"), ("#7a3fb0", "p"), ("#000000", "h"))
_DASHES = ("-", "--", ":", "-.")
MAIN_BLOCK_SIZE = 4
"""The block size drawn with solid lines, where there are rows of it."""


def method_styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of each method, the same in every figure where the methods are."""
    others = cycle(_OTHER_STYLES)
    return {m: _STYLES[m] if m in _STYLES else next(others) for m in methods}


def style_axes(axes: Axes) -> None:
    """Light horizontal rules, no box."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    axes.tick_params(labelsize=10.5, labelcolor=INK, color="#bbbbbb", left=False)


def _point(rows: Sequence[ResultRow]) -> tuple[float, float, float, float]:
    """(tokens per forward, accuracy, error below, error above), means over seeds; in %."""
    accuracy = mean(row.accuracy for row in rows)
    low, high = mean(row.ci95[0] for row in rows), mean(row.ci95[1] for row in rows)
    speed = mean(row.tokens_per_forward for row in rows)
    return speed, 100 * accuracy, 100 * (accuracy - low), 100 * (high - accuracy)


def _draw(axes: Axes, rows: Sequence[ResultRow], styles: dict, dashes: dict[int, str]) -> None:
    """Points and lines of one task."""
    for method in method_order(rows):
        colour, marker = styles[method]
        front = method == "t3d"
        for size, dash in dashes.items():
            own = [row for row in rows if row.method == method and row.block_size == size]
            settings = sorted({Setting.of(row) for row in own}, key=lambda s: s.rank)
            points = {s: _point([r for r in own if Setting.of(r) == s]) for s in settings}
            line = [point for setting, point in points.items() if setting.remasking == STATIC]
            axes.plot(
                [point[0] for point in line],
                [point[1] for point in line],
                dash,
                color=colour,
                linewidth=2.8 if front else 1.8,
                zorder=4 if front else 3,
            )
            for setting, (x, y, below, above) in points.items():
                static = setting.remasking == STATIC
                axes.errorbar(
                    x,
                    y,
                    [[below], [above]],
                    fmt="none",
                    ecolor=colour,
                    elinewidth=1.2,
                    capsize=2.5,
                    zorder=6 if front else 5,
                )
                axes.plot(
                    x,
                    y,
                    marker,
                    color=colour,
                    markerfacecolor=colour if static else "white",
                    markeredgecolor="white" if static else colour,
                    markeredgewidth=1.0 if static else 2.0,
                    markersize=8.5,
                    clip_on=False,
                    zorder=6 if front else 5,
                )


def _label_speeds(axes: Axes, rows: Sequence[ResultRow]) -> None:
    """Name the nominal speeds above the panel, where their points lie."""
    static = [row for row in rows if row.remasking == STATIC]
    for speed in sorted({row.tokens_per_step for row in static}):
        x = mean(row.tokens_per_forward for row in static if row.tokens_per_step == speed)
        axes.axvline(x, color="#f2f2f2", linewidth=9, zorder=0)
        axes.annotate(
            f"{speed:.3g} {'token' if speed == 1 else 'tokens'} a step",
            (x, 1),
            xytext=(0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9.5,
            color=SOFT,
        )


def _legend(figure: Figure, rows: Sequence[ResultRow], styles: dict, dashes: dict) -> None:
    handles = [
        Line2D(
            [], [], color=c, marker=m, markeredgecolor="white", markersize=8.5, linewidth=2, label=n
        )
        for n, (c, m) in styles.items()
    ]
    grey = {"color": SOFT, "markersize": 8.5, "linewidth": 1.8}
    if len(dashes) > 1:
        handles += [
            Line2D([], [], ls=d, label=f"block size {s}", **grey) for s, d in dashes.items()
        ]
    thresholds = sorted({r.confidence_threshold or 0.0 for r in rows if r.remasking == DYNAMIC})
    names = (
        [f"dynamic, threshold {' or '.join(f'{t:g}' for t in thresholds)}"] if thresholds else []
    )
    names += sorted({row.remasking for row in rows} - {STATIC, DYNAMIC})
    if names:
        hollow = {"marker": "o", "ls": "", "markerfacecolor": "white", "markeredgewidth": 2}
        handles.append(Line2D([], [], label="; ".join(names), **grey, **hollow))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
        fontsize=10.5,
        labelcolor=INK,
        columnspacing=2.2,
    )


def accuracy_figure(rows: Sequence[ResultRow]) -> Figure:
    """Accuracy against tokens per forward, 8 inches wide, a panel a task and temperature.

    Lines join the static settings of a method; other remasking gives hollow points. Bars
    are Wilson 95 % intervals. Over several seeds, points and interval ends are means.
    """
    tasks = sorted({(row.task, row.temperature) for row in rows})
    # False sorts first: the main block size gets the solid line.
    sizes = sorted(
        {row.block_size for row in rows}, key=lambda size: (size != MAIN_BLOCK_SIZE, size)
    )
    dashes = dict(zip(sizes, cycle(_DASHES)))
    styles = method_styles(method_order(rows))
    figure = Figure(figsize=(8, 1.3 + 4 * len(tasks)), dpi=200, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, hspace=0.06)  # type: ignore[union-attr]
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(tasks), squeeze=False)[:, 0]
    for axes, (task, temperature) in zip(panels, tasks, strict=True):
        own = [row for row in rows if (row.task, row.temperature) == (task, temperature)]
        _draw(axes, own, styles, dashes)
        _label_speeds(axes, own)
        methods = method_order(own)
        counts = " or ".join(str(n) for n in sorted({row.n for row in own}))
        title = f"{task}, temperature {temperature:g}, n = {counts}; bars are 95 % intervals"
        title += (
            "; means over seeds" if len({(r.method, r.seed) for r in own}) > len(methods) else ""
        )
        axes.set_title(title, loc="left", pad=24, fontsize=11, color=SOFT)
        axes.set_ylabel("accuracy (%)", fontsize=11, color=INK)
        axes.margins(x=0.08, y=0.08)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        style_axes(axes)
    panels[-1].set_xlabel("tokens per forward pass", fontsize=11, color=INK)
    figure.suptitle(
        "Accuracy as each forward pass commits more tokens",
        x=0.012,
        ha="left",
        fontsize=14,
        fontweight="bold",
        color=INK,
    )
    _legend(figure, rows, styles, dashes)
    return figure


def accuracy_plot(rows: Sequence[ResultRow], path: Path) -> None:
    """Write `accuracy_figure` as a PNG 1600 pixels wide, atomically."""
    partial = path.with_name(path.name + ".partial")
    accuracy_figure(rows).savefig(partial, format="png", facecolor="white")
    partial.replace(path)
