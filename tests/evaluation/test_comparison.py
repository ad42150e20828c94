from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.decoding.config import DYNAMIC, STATIC
from t3d.evaluation.comparison import Comparison, Estimate
from t3d.evaluation.results import ORIGINAL, Cell, Condition
from tests.row import make_row


def make_cell(
    method: str,
    correct: Sequence[bool],
    *,
    seed: int = 0,
    steps: int = 1,
    task: str = "task",
    block_size: int = 4,
    dynamic: bool = False,
) -> Cell:
    row = make_row(
        sum(correct),
        len(correct),
        method=method,
        seed=seed,
        task=task,
        block_size=block_size,
        denoising_steps=steps,
        remasking=DYNAMIC if dynamic else STATIC,
    )
    return Cell(row, tuple(bool(c) for c in correct))


def first(num: int, n: int = 100) -> list[bool]:
    """The first `num` of `n` problems are right."""
    return [i < num for i in range(n)]


def same(a: Estimate | None, b: Estimate | None) -> bool:
    assert a is not None
    assert b is not None
    return dataclasses.astuple(a) == pytest.approx(dataclasses.astuple(b), abs=1e-12)


def known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


CONDITION = Condition.of(make_cell("a", [True]).row)
FULL = CONDITION.full


def test_degenerate_data_have_points_for_intervals() -> None:
    cells = [make_cell("a", [True] * 30, seed=s) for s in range(3)]
    cells += [make_cell("b", [False] * 30, seed=s) for s in range(3)]
    c = Comparison(cells)
    assert c.accuracy("a", CONDITION) == Estimate(1, 1, 1)
    assert c.accuracy("b", CONDITION) == Estimate(0, 0, 0)
    assert c.difference("a", "b", CONDITION) == Estimate(1, 1, 1)
    # Equal answers have no difference, however they vary by problem and seed.
    mixed = [make_cell(m, first(9 + s, 30), seed=s) for m in ("c", "d") for s in range(3)]
    assert Comparison(mixed).difference("c", "d", CONDITION) == Estimate(0, 0, 0)


def test_equal_seeds_give_the_bootstrap_of_problems() -> None:
    """One seed, or equal ones: percentiles of Binomial(n, p) / n."""
    one = known(Comparison([make_cell("a", first(60))]).accuracy("a", CONDITION))
    three = [make_cell("a", first(60), seed=s) for s in range(3)]
    assert Comparison(three).accuracy("a", CONDITION) == one
    drawn = np.quantile(np.random.default_rng(0).binomial(100, 0.6, 200_000) / 100, [0.025, 0.975])
    assert (one.low, one.high) == pytest.approx(tuple(drawn), abs=0.011)


def test_seeds_without_problem_noise_give_the_bootstrap_of_seeds() -> None:
    """All right or all wrong by seed: the exact distribution of three draws from three seeds."""
    rights = [True, False, False]
    cells = [make_cell("a", [r] * 20, seed=s) for s, r in enumerate(rights)]
    estimate = known(Comparison(cells).accuracy("a", CONDITION))
    means = sorted(sum(draw) / 3 for draw in itertools.product(rights, repeat=3))
    # P(0) = 8/27 and P(1) = 1/27 are both above 2.5 %.
    assert estimate == Estimate(1 / 3, means[0], means[-1]) == Estimate(1 / 3, 0, 1)


def test_intervals_cover_a_known_difference() -> None:
    """Fresh seeds and problems, true difference 0.1: about 95 % of intervals hold it."""
    rng = np.random.default_rng(0)
    covered, repeats, n, seeds = 0, 120, 150, 8
    for _ in range(repeats):
        ease = rng.uniform(size=n)
        cells = []
        for method, mean in (("a", 0.6), ("b", 0.5)):
            for seed, shift in enumerate(rng.normal(0, 0.04, seeds)):
                noise = rng.uniform(size=n)
                # P(correct) is mean + shift: half of it from the problem, half its own luck.
                right = np.where(rng.uniform(size=n) < 0.5, ease, noise) < mean + shift
                cells.append(make_cell(method, right.tolist(), seed=seed))
        found = known(Comparison(cells, num_resamples=400).difference("a", "b", CONDITION))
        covered += found.low <= 0.1 <= found.high
    assert 0.88 <= covered / repeats < 1


def test_problems_are_paired() -> None:
    """Two methods that agree on most problems: far narrower than if they were other problems."""
    a, b = first(300, 500), first(310, 500)
    paired = Comparison([make_cell("a", a), make_cell("b", b)])
    shuffled = random.Random(0).sample(b, len(b))
    unpaired = Comparison([make_cell("a", a), make_cell("b", shuffled)])
    near, far = (known(c.difference("a", "b", CONDITION)) for c in (paired, unpaired))
    assert near.value == far.value == pytest.approx(-0.02)
    assert near.high - near.low < 0.3 * (far.high - far.low)
    assert near.sign == -1
    assert far.sign == 0


def test_seeds_are_paired_where_they_are_the_same() -> None:
    """Seeds move both methods alike: their difference is sure only if they are the same seeds."""

    def compare(numbers: Sequence[int]) -> Estimate:
        cells = [make_cell("a", first(20 + 20 * s), seed=s) for s in range(3)]
        cells += [make_cell("b", first(15 + 20 * s), seed=k) for s, k in enumerate(numbers)]
        return known(Comparison(cells).difference("a", "b", CONDITION))

    paired, independent = compare([0, 1, 2]), compare([3, 4, 5])
    assert paired.value == independent.value == pytest.approx(0.05)
    assert paired.sign == 1
    assert independent.sign == 0
    assert paired.high - paired.low < 0.5 * (independent.high - independent.low)


@st.composite
def grids(draw: st.DrawFn) -> list[Cell]:
    """Methods with one to three seeds under two conditions, on the same problems."""
    n = draw(st.integers(5, 30))
    right = st.lists(st.booleans(), min_size=n, max_size=n)
    return [
        make_cell(method, draw(right), seed=seed, steps=steps)
        for method in ("a", "b", ORIGINAL)
        for seed in range(draw(st.integers(1, 3)))
        for steps in (1, 4)
    ]


@settings(max_examples=20, deadline=None)
@given(grids(), st.randoms(use_true_random=False))
def test_properties(cells: list[Cell], rng: random.Random) -> None:
    c = Comparison(cells, num_resamples=200)
    for method in c.methods:
        for conditions in ([CONDITION], [FULL], [CONDITION, FULL]):
            found = known(c.accuracy(method, *conditions))
            shares = [np.mean([row.accuracy for row in c.rows(method, x)]) for x in conditions]
            assert found.value == pytest.approx(np.mean(shares))
            assert 0 <= found.low <= found.value + 1e-12
            assert found.value <= found.high + 1e-12 <= 1 + 2e-12
            there = known(c.difference(method, "b", *conditions))
            back = known(c.difference("b", method, *conditions))
            assert (there.value, there.low, there.high) == (-back.value, -back.high, -back.low)
        assert c.difference(method, method, CONDITION) == Estimate(0, 0, 0)
    shuffled = Comparison(rng.sample(cells, len(cells)), num_resamples=200)
    assert shuffled.document() == c.document()


def test_the_seed_of_the_bootstrap_counts() -> None:
    cells = [make_cell("a", first(num), seed=s) for s, num in enumerate((41, 53, 67))]
    made = {Comparison(cells, num_resamples=200, seed=s).accuracy("a", CONDITION) for s in (0, 1)}
    assert len(made) == 2


def test_gap_closed_and_improvement() -> None:
    cells = [make_cell(ORIGINAL, first(90), steps=4), make_cell(ORIGINAL, first(10))]
    cells += [make_cell("half", first(50), seed=s) for s in (0, 1)]
    cells += [make_cell("all", first(90)), make_cell("none", first(10))]
    c = Comparison(cells)
    half = known(c.gap_closed("half", CONDITION))
    assert half.value == pytest.approx(0.5)
    assert 0.3 < half.low < 0.5 < half.high < 0.7
    # Paired: these are exact whatever problems are drawn.
    assert same(c.gap_closed("all", CONDITION), Estimate(1, 1, 1))
    assert same(c.gap_closed("none", CONDITION), Estimate(0, 0, 0))
    assert same(c.improvement("none", CONDITION), Estimate(0, 0, 0))
    assert known(c.improvement("half", CONDITION)).value == pytest.approx(4)
    assert c.gap_closed("half", FULL) is None


def test_ratios_need_a_sure_denominator() -> None:
    cells = [make_cell(ORIGINAL, first(50), steps=4), make_cell(ORIGINAL, first(50))]
    c = Comparison([*cells, make_cell("a", first(60))])
    assert c.gap_closed("a", CONDITION) is None
    assert c.improvement("a", CONDITION) is not None
    c = Comparison([make_cell(ORIGINAL, [False] * 9), make_cell("a", first(5, 9))])
    assert c.improvement("a", CONDITION) is None


def test_missing_cells_give_none() -> None:
    c = Comparison([make_cell("a", first(5)), make_cell("b", first(5), steps=4)])
    assert c.accuracy("a", FULL) is None
    assert c.accuracy("a", CONDITION, FULL) is None
    assert c.accuracy("a") is None
    assert c.difference("a", "b", CONDITION) is None
    assert c.improvement("a", CONDITION) is None
    assert c.gap_closed("a", CONDITION) is None


def test_a_mean_weighs_tasks_alike() -> None:
    cells = [make_cell("a", first(8, 10), task="x"), make_cell("a", first(20, 100), task="y")]
    c = Comparison(cells)
    assert c.num_problems == {"x": 10, "y": 100}
    assert known(c.accuracy("a", *c.conditions)).value == pytest.approx(0.5)
    assert c.speeds == {(0.1, 4.0): c.conditions}


def test_cells_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no cells"):
        Comparison([])
    with pytest.raises(ValueError, match="two cells for method a, seed 0"):
        Comparison([make_cell("a", first(5)), make_cell("a", first(6))])
    with pytest.raises(ValueError, match="task task: cells of 9 and of 7 problems"):
        Comparison([make_cell("b", first(5, 9)), make_cell("a", first(5, 7))])


def test_document_is_json_and_has_every_pair() -> None:
    cells = [make_cell(m, first(50), seed=s) for m in ("a", "b", ORIGINAL) for s in (0, 1)]
    document = Comparison(cells, num_resamples=200, seed=3).document()
    assert json.loads(json.dumps(document)) == document
    assert document["bootstrap"] == {
        "num_resamples": 200,
        "seed": 3,
        "level": 0.95,
        "resampled": ["seeds", "problems"],
    }
    pairs = {(row["method"], row["other"]) for row in document["differences"]}
    assert pairs == {("a", "b"), ("a", ORIGINAL), ("b", ORIGINAL)}
    assert [row["seeds"] for row in document["accuracy"]] == [[0, 1]] * 3
    assert {row["seed_deviation"] for row in document["accuracy"]} == {0.0}
