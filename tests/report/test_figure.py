from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from t3d.evaluation.results import ResultRow
from t3d.report.plots import accuracy_figure, accuracy_plot

Make = Callable[..., list[ResultRow]]
T3D_COLOUR = (0xD5, 0x5E, 0x00)


def drawn(axes: Axes) -> tuple[set, set]:
    """(points, lines): (x, y, filled) of single points, ((x, y), ...) of lines that join."""
    points, lines = set(), set()
    for line in axes.lines:
        xy = tuple((x, y) for x, y in np.asarray(line.get_xydata()).tolist())
        if line.get_marker() in ("None", "", None):
            if len(xy) > 1 and line.get_color() != "#f2f2f2":
                lines.add(xy)
        elif len(xy) == 1 and line.get_marker() != "_":
            points.add((*xy[0], line.get_markerfacecolor() != "white"))
    return points, lines


def legend_labels(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_png_decodes_and_replaces_the_old_one(make_rows: Make, tmp_path: Path) -> None:
    path = tmp_path / "accuracy.png"
    path.write_text("old")
    accuracy_plot(make_rows(), path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width == 1600
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == T3D_COLOUR).all(axis=1).sum() > 500
    assert list(tmp_path.iterdir()) == [path]
    accuracy_plot(make_rows(methods=("original", "sft")), path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert not (pixels == T3D_COLOUR).all(axis=1).any()


def test_points_and_lines_are_those_of_the_rows(make_rows: Make) -> None:
    rows = make_rows(methods=("t3d", "original", "sft"))
    (axes,) = accuracy_figure(rows).axes
    points, lines = drawn(axes)
    place = {id(row): (row.tokens_per_forward, 100 * row.accuracy) for row in rows}
    static = [row for row in rows if row.confidence_threshold is None]
    assert points == {(*place[id(row)], row in static) for row in rows}
    # Static settings are joined from the slowest to the fastest.
    slow_first = sorted(static, key=lambda row: -row.denoising_steps)
    assert lines == {
        tuple(place[id(row)] for row in slow_first if row.method == method)
        for method in ("t3d", "original", "sft")
    }


def test_bars_are_the_intervals(make_rows: Make) -> None:
    rows = make_rows(methods=("t3d",))
    (axes,) = accuracy_figure(rows).axes
    bars = [bar for c in axes.containers for bar in c.lines[2]]  # type: ignore[attr-defined]
    ends = {tuple(segment[:, 1]) for bar in bars for segment in bar.get_segments()}
    assert sorted(ends) == [
        pytest.approx((100 * low, 100 * high)) for low, high in sorted(row.ci95 for row in rows)
    ]


def test_several_seeds_are_averaged(make_rows: Make) -> None:
    rows = make_rows(methods=("t3d",), seeds=(0, 1, 2))
    (axes,) = accuracy_figure(rows).axes
    points, _ = drawn(axes)
    dynamic = [row for row in rows if row.confidence_threshold is not None]
    (point,) = [point for point in points if not point[2]]
    expected = mean(r.tokens_per_forward for r in dynamic), 100 * mean(r.accuracy for r in dynamic)
    assert point[:2] == pytest.approx(expected)
    assert len(points) == 4
    assert "means over seeds" in axes.get_title(loc="left")
    (single,) = accuracy_figure(make_rows()).axes
    assert "means over seeds" not in single.get_title(loc="left")


def test_legend_and_labels(make_rows: Make) -> None:
    figure = accuracy_figure(make_rows(methods=("zebra", "t3d", "original"), block_sizes=(4, 8)))
    assert legend_labels(figure) == [
        "original",
        "t3d",
        "zebra",
        "block size 4",
        "block size 8",
        "dynamic, threshold 0.9",
    ]
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.texts]
    assert labels == ["1 token a step", *(f"{k} tokens a step" for k in (2, 4, 8))]
    assert {
        line.get_linestyle() for line in axes.lines if len(np.asarray(line.get_xdata())) == 3
    } == {
        "-",
        "--",
    }


def test_other_remasking_is_named(make_rows: Make) -> None:
    rows = [dataclasses.replace(row, remasking="sequential") for row in make_rows(("t3d",))[:1]]
    assert legend_labels(accuracy_figure(rows)) == ["t3d", "sequential"]


def test_a_panel_a_task_and_temperature(make_rows: Make) -> None:
    rows = make_rows(methods=("t3d",))
    task = [dataclasses.replace(row, task="gsm8k", n=7) for row in rows]
    warm = [dataclasses.replace(row, temperature=1.0) for row in rows]
    panels = accuracy_figure(rows + task + warm).axes
    assert [axes.get_title(loc="left").split(";")[0] for axes in panels] == [
        "gsm8k, temperature 0.1, n = 7",
        "mini_gsm, temperature 0.1, n = 500",
        "mini_gsm, temperature 1, n = 500",
    ]
    assert all(len(drawn(axes)[0]) == 4 for axes in panels)


def test_figures_stay_out_of_the_global_plotting_state(make_rows: Make) -> None:
    assert accuracy_figure(make_rows(methods=("t3d",))).canvas.manager is None
