"""Points, Pareto flags and AUP against their definitions and computed by hand."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.decoding.config import DYNAMIC, STATIC
from t3d.evaluation.frontier import Point, aup, frontier, kept, pareto
from t3d.evaluation.metrics import wilson_interval
from t3d.evaluation.results import ResultRow
from tests import row

# Few distinct values, so that ties are common.
COARSE = st.tuples(st.integers(1, 8).map(lambda x: x / 2), st.integers(0, 10).map(lambda y: y / 10))
CURVES = st.lists(
    st.tuples(st.floats(0.5, 16), st.floats(0, 1)), min_size=1, max_size=8, unique_by=lambda p: p[0]
)


def make_row(correct: int, forward: float = 1.0, *, n: int = 100, **values: object) -> ResultRow:
    own: dict[str, object] = {"tokens_per_forward": forward, "tokens_per_second": 100.0 * forward}
    return row.make_row(correct, n, **own | values)


@given(st.lists(COARSE, max_size=9))
def test_what_is_not_on_the_frontier_is_dominated_by_what_is(
    points: list[tuple[float, float]],
) -> None:
    flags = pareto(points)
    best = [p for p, flag in zip(points, flags, strict=True) if flag]
    assert bool(best) == bool(points)
    # Along the frontier, faster is strictly less accurate.
    line = sorted(set(best))
    assert all(a[1] > b[1] for a, b in pairwise(line))
    for (x, y), flag in zip(points, flags, strict=True):
        better = [(a, b) for a, b in best if a >= x and b >= y and (a > x or b > y)]
        assert flag == (not better)


def test_aup_by_hand() -> None:
    # y_max = 0.8: W(0.8) = 1, W(0.78) = exp(-3 / 40), and 0.74 is more than 5 points below.
    points = [(1.0, 0.8), (2.0, 0.78), (3.0, 0.74)]
    weighted = 78 * math.exp(-3 * 0.02 / 0.8)
    assert aup(points, 0.8) == pytest.approx(80 + (80 + weighted) / 2)
    # A better method elsewhere lowers the weights, not the first term.
    first, second = (100 * y * math.exp(-3 * (1 - y / 0.9)) for y in (0.8, 0.78))
    assert aup(points, 0.9) == pytest.approx(80 + (first + second) / 2)
    assert aup(points, 0.8, alpha=0, tolerance=1) == pytest.approx(80 + 79 + 76)
    assert aup([(2.5, 0.6)], 0.6) == pytest.approx(150)
    assert aup([(1.0, 0.0), (2.0, 0.0)], 0.0) == 0


@pytest.mark.parametrize("percent", range(5, 101))
def test_a_loss_of_exactly_the_tolerance_is_kept(percent: int) -> None:
    points = [(1.0, percent / 100), (2.0, (percent - 5) / 100), (3.0, (percent - 6) / 100)]
    assert kept(points) == points[:2]


@given(CURVES, st.floats(0, 1), st.floats(0, 5), st.floats(0, 1))
def test_aup_is_an_integral(
    points: list[tuple[float, float]], best: float, alpha: float, tolerance: float
) -> None:
    """The trapezoid rule of numpy over the weighted accuracies, and what lies before the first."""
    best = max(best, 0.01, *(y for _, y in points))
    x, y = np.array(sorted(points)).T
    near = y >= y[0] - tolerance - 1e-9
    x, y = x[near], y[near]
    weight = np.minimum(np.exp(-alpha * (1 - y / best)), 1)
    expected = 100 * (x[0] * y[0] + np.trapezoid(y * weight, x))
    assert aup(points, best, alpha=alpha, tolerance=tolerance) == pytest.approx(expected)


@given(CURVES, st.randoms(use_true_random=False), st.floats(0.1, 4))
def test_aup_properties(
    points: list[tuple[float, float]], rng: random.Random, factor: float
) -> None:
    best = max(0.01, *(y for _, y in points))
    value = aup(points, best)
    assert aup(rng.sample(points, len(points)), best) == value
    # Speed is a unit.
    assert aup([(factor * x, y) for x, y in points], best) == pytest.approx(factor * value)
    line = kept(points)
    fastest, last = line[-1]
    # Full accuracy everywhere is the rectangle, and no more is possible at that speed.
    assert aup([(x, best) for x, _ in points], best) == pytest.approx(
        100 * best * max(x for x, _ in points)
    )
    assert value <= 100 * best * fastest + 1e-9
    # What is too inaccurate does not count; what is equally accurate and faster does.
    assert aup([*points, (20.0, line[0][1] - 0.06)], best) == value
    assert aup([*points, (20.0, last)], best) >= value
    # At one speed, only the most accurate counts.
    assert aup([*points, *((x, y - 0.01) for x, y in points)], best) == value
    # A better competitor never raises it.
    assert aup(points, best + 0.1) <= value + 1e-9


def by_steps(rows: list[ResultRow]) -> dict[tuple[str, int], Point]:
    return {(p.name, p.condition.decoding.denoising_steps): p for p in frontier(rows).points}


def test_points_are_means_over_seeds() -> None:
    rows = [
        make_row(num, x, seed=seed, denoising_steps=k, model=f"run/{seed}")
        for k, seed, num, x in ((4, 0, 80, 1.0), (4, 1, 90, 1.2), (2, 0, 60, 2.0))
    ]
    found = by_steps(rows)
    point = found["t3d", 4]
    assert (point.seeds, point.n) == ((0, 1), 100)
    assert point.accuracy == pytest.approx(0.85)
    assert point.tokens_per_forward == pytest.approx(1.1)
    assert point.tokens_per_second == pytest.approx(110)
    ends = zip(wilson_interval(80, 100), wilson_interval(90, 100), strict=True)
    assert point.ci95 == pytest.approx([sum(pair) / 2 for pair in ends])
    assert found["t3d", 2].ci95 == wilson_interval(60, 100)
    (score,) = frontier(rows).scores
    assert score.aup == pytest.approx(110 * 0.85)
    assert (score.num_kept, score.num_points) == (1, 2)
    assert (score.fastest, score.best) == (pytest.approx(1.1), pytest.approx(0.85))


def test_the_frontier_is_one_of_each_method_task_and_speed() -> None:
    rows = [
        make_row(80, 1.0, denoising_steps=4),
        make_row(70, 2.0, denoising_steps=2, tokens_per_second=50.0),
        make_row(65, 1.5, denoising_steps=1, tokens_per_second=300.0),
        # Dominates all of the above, but has another name, task or temperature.
        make_row(99, 9.0, method="sft", denoising_steps=1),
        make_row(99, 9.0, task="other"),
        make_row(99, 9.0, temperature=1.0),
    ]
    result = frontier(rows)
    flags = {
        p.condition.decoding.denoising_steps: (p.pareto, p.pareto_seconds)
        for p in result.points
        if (p.name, p.condition.task, p.condition.decoding.temperature) == ("t3d", "task", 0.1)
    }
    assert flags == {4: (True, True), 2: (True, False), 1: (False, True)}
    scores = {(s.name, s.task, s.temperature): s for s in result.scores}
    assert len(scores) == 4
    # y_max is the best of any method of the task.
    assert scores["t3d", "task", 0.1].aup == aup([(1.0, 0.8), (1.5, 0.65), (2.0, 0.7)], 0.99)


def test_checkpoints_of_one_method_are_told_apart() -> None:
    rows = [make_row(80, model="a"), make_row(70, model="b"), make_row(60, method="sft")]
    assert {p.name for p in frontier(rows).points} == {"t3d (a)", "t3d (b)", "sft"}


def test_the_order_of_rows_changes_nothing() -> None:
    rng = random.Random(0)
    rows = [
        make_row(
            rng.randrange(101),
            rng.uniform(1, 4),
            method=method,
            seed=seed,
            block_size=size,
            denoising_steps=size // 2,
            remasking=remasking,
            confidence_threshold=threshold,
        )
        for method in ("t3d", "sft")
        for seed in (0, 1)
        for size in (4, 8)
        for remasking, threshold in ((STATIC, 0.9), (DYNAMIC, 0.9), (DYNAMIC, 0.5))
    ]
    expected = frontier(rows)
    assert len(expected.points) == 12
    speeds = [p.tokens_per_forward for p in expected.points if p.name == "t3d"]
    assert speeds == sorted(speeds)
    for _ in range(3):
        assert frontier(rng.sample(rows, len(rows))) == expected


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no result rows"):
        frontier([])
    with pytest.raises(ValueError, match="two result rows for t3d, seed 0"):
        frontier([make_row(5), make_row(6)])
    with pytest.raises(ValueError, match="task task: rows of 100 and of 50 problems"):
        frontier([make_row(5), make_row(5, n=50, denoising_steps=2)])
