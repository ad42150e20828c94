"""Accuracy of methods against tokens per step."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from t3d.core.files import write_bytes
from t3d.evaluation.comparison import Comparison, Estimate
from t3d.evaluation.results import Condition
from t3d.report.plots import INK, SOFT, method_styles, style_axes
from t3d.report.sheets import order_methods

_DODGE = 0.05
"""Distance between methods at one speed, in octaves, so that their bars stay apart."""


def comparison_figure(comparison: Comparison, recommended: str | None = None) -> Figure:
    """A line a method over the static settings, a panel a block size, a row a task.

    Bars are the 95 % intervals of `Comparison.accuracy`. Methods are shifted sideways a little.
    """
    static = [c for conditions in comparison.speeds.values() for c in conditions]
    assert static, "there is nothing to draw without static settings"
    tasks = sorted({(c.task, c.temperature) for c in static})
    sizes = sorted({c.block_size for c in static})
    methods = order_methods(comparison.methods)
    speeds = sorted({c.tokens_per_step for c in static})
    band = 2.0 ** (_DODGE * (len(methods) + 1) / 2)
    figure = Figure(
        figsize=(max(8, 5 * len(sizes)), 1.8 + 3.8 * len(tasks)), dpi=200, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.1, hspace=0.06)  # type: ignore[union-attr]
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(tasks), len(sizes), squeeze=False, sharex="all", sharey="row")
    for row, (task, temperature) in zip(panels, tasks, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            own = [
                c
                for c in sorted(static, key=lambda c: c.rank)
                if (c.task, c.temperature, c.block_size) == (task, temperature, size)
            ]
            _draw(axes, comparison, own, recommended or "t3d")
            axes.set_title(
                f"{task}, block size {size}, temperature {temperature:g}",
                loc="left",
                fontsize=11,
                color=SOFT,
            )
            axes.set_xscale("log", base=2)
            for speed in speeds:
                axes.axvspan(speed / band, speed * band, color="#f5f5f5", linewidth=0, zorder=0)
            axes.xaxis.set_major_locator(FixedLocator(speeds))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda speed, _: f"{speed:.3g}")
            axes.set_ylim(bottom=0)
            style_axes(axes)
        row[0].set_ylabel("accuracy (%)", fontsize=11, color=INK)
    for axes in panels[-1]:
        axes.set_xlabel("tokens per step", fontsize=11, color=INK)
    figure.suptitle(
        "Accuracy as each step commits more tokens, with 95 % intervals over "
        + ("problems, one seed each" if comparison.has_one_seed else "seeds and problems"),
        x=0.012,
        ha="left",
        fontsize=12.5,
        fontweight="bold",
        color=INK,
    )
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            markeredgecolor="white",
            markersize=8.5,
            linewidth=3 if method == recommended else 1.6,
            label=f"{method} (recommended)" if method == recommended else method,
        )
        for method, (colour, marker) in method_styles(methods).items()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(5, len(handles)),
        frameon=False,
        fontsize=10.5,
        labelcolor=INK,
        columnspacing=2.2,
    )
    return figure


def _draw(axes: Axes, comparison: Comparison, conditions: list[Condition], front: str) -> None:
    """The lines of one panel; `front` is drawn thick and above the others."""
    methods = order_methods(comparison.methods)
    for place, (method, (colour, marker)) in enumerate(method_styles(methods).items()):
        shift = 2.0 ** (_DODGE * (place - (len(methods) - 1) / 2))
        points: list[tuple[float, Estimate]] = []
        for condition in conditions:
            estimate = comparison.accuracy(method, condition)
            if estimate is not None:
                points.append((condition.tokens_per_step * shift, estimate))
        if not points:
            continue
        own = [estimate for _, estimate in points]
        axes.errorbar(
            [x for x, _ in points],
            [100 * e.value for e in own],
            # A ratio of rounded numbers may leave -1e-17.
            [
                [max(0.0, 100 * (e.value - e.low)) for e in own],
                [max(0.0, 100 * (e.high - e.value)) for e in own],
            ],
            color=colour,
            marker=marker,
            markeredgecolor="white",
            markersize=7.5,
            linewidth=3 if method == front else 1.4,
            elinewidth=1.2,
            capsize=2.5,
            clip_on=False,
            zorder=5 if method == front else 3,
        )


def comparison_plot(comparison: Comparison, path: Path, recommended: str | None = None) -> None:
    """Write `comparison_figure` as a PNG, atomically."""
    data = io.BytesIO()
    comparison_figure(comparison, recommended).savefig(data, format="png", facecolor="white")
    write_bytes(path, data.getvalue())
