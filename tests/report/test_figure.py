"""The figures: what they draw is what the numbers say, and one look is one method's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from t3d.decoding.config import STATIC
from t3d.evaluation.comparison import Comparison, Estimate
from t3d.evaluation.frontier import frontier
from t3d.evaluation.results import ORIGINAL, Cell, ResultRow
from t3d.report.figure import comparison_figure, frontier_figure, save
from t3d.report.frontier import panels
from t3d.report.sheets import style
from t3d.training.methods import METHODS as BUILT_IN

Make = Callable[..., list[ResultRow]]
METHODS = ("original", "dparallel", "t3d", "alpha")
T3D_COLOUR = (0xD5, 0x5E, 0x00)


def figure_of(rows: list[ResultRow]) -> Figure:
    return frontier_figure(panels(frontier(rows).points))


def legend_labels(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def right(row: ResultRow) -> tuple[bool, ...]:
    """The first problems are."""
    return tuple(i < round(row.accuracy * row.n) for i in range(row.n))


def percents(estimate: Estimate | None) -> list[float]:
    assert estimate is not None
    return [100 * x for x in dataclasses.astuple(estimate)]


def test_each_built_in_method_has_a_colour_of_its_own() -> None:
    assert len({style(method)[0] for method in (ORIGINAL, *BUILT_IN)}) == 1 + len(BUILT_IN)


def test_the_look_of_a_method_does_not_depend_on_the_others(make_rows: Make) -> None:
    names = ("zebra", *METHODS)
    together = figure_of(make_rows(names)).legends[0].get_lines()
    for name in names:
        (alone, *_) = figure_of(make_rows((name,))).legends[0].get_lines()
        (line,) = [line for line in together if line.get_label() == name]
        assert line.get_color() == alone.get_color() == style(name)[0]


def test_png_decodes_and_replaces_the_old_one(make_rows: Make, tmp_path: Path) -> None:
    path = tmp_path / "accuracy.png"
    path.write_text("old")
    for methods, is_there in ((METHODS, True), (("original", "sft"), False)):
        save(figure_of(make_rows(methods)), path)
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width == 2200
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert ((pixels == T3D_COLOUR).all(axis=1).sum() > 500) == is_there
        assert list(tmp_path.iterdir()) == [path]


def test_a_frontier_has_points_intervals_and_lines(make_rows: Make) -> None:
    found = frontier(make_rows(METHODS, seeds=(0, 1), block_sizes=(4, 8)))
    figure = frontier_figure(panels(found.points))
    assert len(figure.axes) == 2
    for axes, field, flag in zip(
        figure.axes,
        ("tokens_per_forward", "tokens_per_second"),
        ("pareto", "pareto_seconds"),
        strict=True,
    ):
        drawn = [x for x in axes.containers if isinstance(x, ErrorbarContainer)]
        order = [p for name in METHODS for p in found.points if p.name == name]
        looks = set()
        for point, container in zip(order, drawn, strict=True):
            line, _, (bars,) = container.lines
            assert line is not None
            (xy,) = np.asarray(line.get_xydata())
            assert xy == pytest.approx((getattr(point, field), 100 * point.accuracy))
            (segment,) = bars.get_segments()
            assert segment[:, 1] == pytest.approx([100 * end for end in point.ci95])
            assert (line.get_alpha() == 1) == getattr(point, flag)
            looks.add(
                (
                    point.condition.decoding.block_size,
                    point.condition.decoding.remasking,
                    line.get_marker(),
                    line.get_fillstyle(),
                )
            )
        # One marker a block size, one filling a remasking.
        assert len(looks) == 4
        assert len({look[::2] for look in looks}) == len({look[1::2] for look in looks}) == 2
        lines = [x for x in axes.lines if x.get_marker() == "None" and x.get_linewidth() == 1.8]
        for name, line in zip(METHODS, lines, strict=True):
            best = [p for p in order if p.name == name and getattr(p, flag)]
            expected = sorted((getattr(p, field), 100 * p.accuracy) for p in best)
            assert np.allclose(np.asarray(line.get_xydata()), expected)
    assert legend_labels(figure) == [
        *METHODS,
        "block size 4",
        "block size 8",
        "filled: static",
        "hollow: dynamic",
    ]


def test_a_comparison_has_accuracies_and_intervals(make_rows: Make) -> None:
    rows = make_rows(METHODS, seeds=(0, 1, 2), block_sizes=(4, 8), n=60)
    c = Comparison([Cell(row, right(row)) for row in rows])
    figure = comparison_figure(c, "alpha")
    assert [axes.get_title(loc="left").split(",")[1] for axes in figure.axes] == [
        " block size 4",
        " block size 8",
    ]
    for axes, size in zip(figure.axes, (4, 8), strict=True):
        drawn = [x for x in axes.containers if isinstance(x, ErrorbarContainer)]
        assert len(drawn) == len(METHODS)
        for method, container in zip(METHODS, drawn, strict=True):
            line, _, (bars,) = container.lines
            assert line is not None
            own = [
                x
                for x in c.conditions
                if x.decoding.remasking == STATIC and x.decoding.block_size == size
            ]
            estimates = [percents(c.accuracy(method, one)) for one in own]
            xs, ys = np.asarray(line.get_xydata()).T
            assert ys == pytest.approx([value for value, _, _ in estimates])
            # Shifted, but nearest to their own speed.
            assert [2 ** round(x) for x in np.log2(xs)] == [x.decoding.tokens_per_step for x in own]
            ends = [segment[:, 1] for segment in bars.get_segments()]
            assert np.allclose(ends, [(low, high) for _, low, high in estimates])
            assert (line.get_linewidth() > 2) == (method == "alpha")
    assert legend_labels(figure) == [*METHODS[:-1], "alpha (recommended)"]


def test_several_seeds_are_averaged(make_rows: Make) -> None:
    for seeds in ((0,), (0, 1, 2)):
        axes, _ = figure_of(make_rows(("t3d",), seeds=seeds)).axes
        drawn = [x for x in axes.containers if isinstance(x, ErrorbarContainer)]
        assert len(drawn) == 4
        assert ("means over seeds" in axes.get_title(loc="left")) == (len(seeds) > 1)


@pytest.mark.parametrize(
    ("remasking", "label"),
    [
        ("sequential", "left half: sequential"),
        ("random", "lower half: random"),
        ("ancestral", "upper half: ancestral"),
        ("entropy_bounded", "upper half: entropy_bounded"),
    ],
)
def test_other_remasking_is_named(make_rows: Make, remasking: str, label: str) -> None:
    row = make_rows(("t3d",))[0]
    decoding = dataclasses.replace(row.decoding, remasking=remasking)
    figure = figure_of([dataclasses.replace(row, decoding=decoding)])
    assert legend_labels(figure) == ["t3d", "block size 4", label]


def test_a_row_of_panels_a_task_and_temperature(make_rows: Make) -> None:
    rows = make_rows(("t3d",))
    task = [dataclasses.replace(row, task="gsm8k", n=7) for row in rows]
    warm = [
        dataclasses.replace(row, decoding=dataclasses.replace(row.decoding, temperature=1.0))
        for row in rows
    ]
    axes = figure_of(rows + task + warm).axes
    assert [x.get_title(loc="left").split(";")[0] for x in axes[::2]] == [
        "gsm8k, temperature 0.1, n = 7",
        "mini_gsm, temperature 0.1, n = 500",
        "mini_gsm, temperature 1, n = 500",
    ]
    assert len(axes) == 6
    assert all(len(x.containers) == 4 for x in axes)


def _is_inside(figure: Figure, text: Text) -> bool:
    figure.draw_without_rendering()
    box = text.get_window_extent()
    return 0 <= box.x0 < box.x1 <= figure.bbox.width


@pytest.mark.parametrize("sizes", [(4,), (4, 8)])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_title_is_not_cut_off(
    make_rows: Make, sizes: tuple[int, ...], seeds: tuple[int, ...]
) -> None:
    rows = make_rows(("original", "t3d"), seeds, sizes, n=8)
    figure = comparison_figure(Comparison([Cell(row, right(row)) for row in rows]))
    (title,) = [text for text in figure.texts if "Accuracy" in text.get_text()]
    assert _is_inside(figure, title)


def test_numbers_below_a_narrow_range_stay_apart(make_rows: Make) -> None:
    rows = [
        dataclasses.replace(row, tokens_per_forward=0.977 + i / 1000)
        for i, row in enumerate(make_rows(("t3d",))[:2])
    ]
    figure = figure_of(rows)
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].get_xticklabels() if text.get_text()]
    low, high = figure.axes[0].get_xlim()
    boxes = [t.get_window_extent() for t in labels if low <= t.get_position()[0] <= high]
    assert len(boxes) > 1
    assert all(one.x1 < two.x0 for one, two in pairwise(boxes))


def test_figures_stay_out_of_the_global_plotting_state(make_rows: Make) -> None:
    assert figure_of(make_rows(("t3d",))).canvas.manager is None
