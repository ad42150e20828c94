"""The test of a loss against its exact size, and the choice against its rule."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.decoding.config import DYNAMIC, STATIC
from t3d.evaluation.calibrate import (
    Choice,
    choose,
    loss_bound,
    loss_p_value,
)
from t3d.evaluation.results import Cell
from tests.row import make_row


def probability(losses: int, gains: int, n: int, lose: float, win: float) -> float:
    """Of these counts, by the definition of the multinomial distribution."""
    same = n - losses - gains
    ways = math.comb(n, losses) * math.comb(n - losses, gains)
    return ways * lose**losses * win**gains * max(0.0, 1 - lose - win) ** same


@pytest.mark.parametrize("margin", [0.0, 0.03, 0.15])
def test_the_size_is_kept_whatever_the_disagreement(margin: float) -> None:
    """All outcomes of 18 problems: losses of `margin` or more are refused at the level asked."""
    n = 18
    pairs = [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]
    p = {pair: loss_p_value(*pair, n, margin) for pair in pairs}
    for level in (0.05, 0.1, 0.3):
        refused = [pair for pair in pairs if p[pair] <= level]
        worst = 0.0
        for loss in (margin, margin + 0.01, margin + 0.2):
            for win in np.linspace(0, (1 - loss) / 2, 37):
                worst = max(worst, sum(probability(*pair, n, win + loss, win) for pair in refused))
        # Shares between those that are computed may be a little worse.
        assert worst <= level + 1e-3
        # And nothing is given away: some outcome is close to the level.
        assert refused == [] or worst > 0.2 * level
    # More losses speak for a loss, more gains against it.
    for lost, won in pairs:
        if lost + won < n:
            assert p[lost + 1, won] >= p[lost, won] - 1e-9
            assert p[lost, won + 1] <= p[lost, won] + 1e-9


def test_bounds_cover_in_simulation() -> None:
    """200 problems, loss 5 points, gains 8: the bound at 90 % is below in about 10 % of draws."""
    drawn = np.random.default_rng(0).multinomial(200, [0.13, 0.08, 0.79], 300)
    known: dict[tuple[int, int], bool] = {}
    below = 0
    for lost, won, _ in drawn.tolist():
        if (lost, won) not in known:
            known[lost, won] = loss_p_value(lost, won, 200, 0.05) <= 0.1
        below += known[lost, won]
    assert 0.05 <= below / 300 <= 0.13


@pytest.mark.parametrize(("losses", "gains"), [(30, 25), (20, 22), (12, 12)])
def test_many_problems_give_the_normal_distribution(losses: int, gains: int) -> None:
    """The score test with the most likely share of gains, found by search."""
    n, margin = 400, 0.03
    win = np.linspace(1e-6, (1 - margin) / 2 - 1e-6, 100_001)
    likelihood = (
        losses * np.log(win + margin)
        + gains * np.log(win)
        + (n - losses - gains) * np.log(1 - 2 * win - margin)
    )
    share = win[likelihood.argmax()]
    spread = math.sqrt(n * (2 * share + margin - margin**2))
    z = (losses - gains - n * margin) / spread
    assert loss_p_value(losses, gains, n, margin) == pytest.approx(NormalDist().cdf(z), abs=0.015)


@pytest.mark.parametrize("n", [20, 100, 300])
def test_equal_answers_bound_the_loss(n: int) -> None:
    """No fewer than the losses that (1 - m)^n hides, and hardly more."""
    exact = 1 - 0.05 ** (1 / n)
    assert exact <= loss_bound(0, 0, n, 0.95) <= 1.1 * exact + 2e-4


@settings(max_examples=10)
@given(st.data())
def test_bounds(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    losses = data.draw(st.integers(0, n))
    gains = data.draw(st.integers(0, n - losses))
    low, high = (loss_bound(losses, gains, n, level) for level in (0.6, 0.95))
    assert 0 <= low <= high <= 1
    assert high >= (losses - gains) / n
    assert (high == 0) == (loss_p_value(losses, gains, n, 0.0) <= 0.05)
    if 0 < high < 1:
        assert loss_p_value(losses, gains, n, high) <= 0.05


N = 200


def make_cell(
    losses: int,
    gains: int = 0,
    *,
    forward: float = 2.0,
    block_size: int = 4,
    steps: int = 4,
    threshold: float | None = None,
    n: int = N,
    **values: object,
) -> Cell:
    """The baseline solves the first half; `losses` fewer of it and `gains` more are right."""
    right = tuple(losses <= i < n // 2 + gains for i in range(n))
    row = make_row(
        sum(right),
        n,
        tokens_per_forward=forward,
        block_size=block_size,
        denoising_steps=steps,
        remasking=STATIC if threshold is None else DYNAMIC,
        confidence_threshold=0.9 if threshold is None else threshold,
        **values,
    )
    return Cell(row, right)


BASELINE = make_cell(0, forward=1.0)


def by_setting(choice: Choice) -> dict[tuple[int, float | None], tuple[bool, str]]:
    return {
        (
            d.denoising_steps,
            d.confidence_threshold if d.remasking == DYNAMIC else None,
        ): (c.accepted, c.reason)
        for c in choice.candidates
        for d in [c.row.decoding]
    }


def test_the_fastest_accepted_setting_is_chosen() -> None:
    cells = [
        BASELINE,
        make_cell(40, forward=3.9, steps=1),
        make_cell(1, forward=1.9, steps=2),
        make_cell(0, 1, forward=1.8, threshold=0.95),
        make_cell(2, 2, forward=2.4, threshold=0.9, tokens_per_second=5.0),
        # Faster still and as good as the baseline, but behind a refusal.
        make_cell(60, forward=2.9, threshold=0.8),
        make_cell(0, forward=3.5, threshold=0.6),
    ]
    choice = choose(cells, BASELINE, max_loss=5, confidence=0.9)
    assert choice.row.decoding.confidence_threshold == 0.9
    assert choice.sweep_confidence == pytest.approx(0.95)
    found = by_setting(choice)
    assert {key: accepted for key, (accepted, _) in found.items()} == {
        (2, None): True,
        (1, None): False,
        (4, 0.95): True,
        (4, 0.9): True,
        (4, 0.8): False,
        (4, 0.6): False,
    }
    assert found[1, None][1].startswith("may lose 2")
    assert found[4, 0.6][1] == "not tried: a slower setting of its sweep was refused"
    chosen = next(c for c in choice.candidates if c.row == choice.row)
    assert choice.bound == chosen.bound
    assert chosen.reason == f"loses at most {100 * chosen.bound:.2f} points"
    assert (chosen.losses, chosen.gains, chosen.loss) == (2, 2, 0)
    # By tokens per second the slow machine's setting is out; by accuracy the tie is broken.
    choice = choose(cells, BASELINE, max_loss=5, confidence=0.9, speed="tokens_per_second")
    assert choice.row.decoding.confidence_threshold == 0.95


@settings(max_examples=4)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.floats(0.5, 4)), min_size=4, max_size=4
    ),
    st.sampled_from([0.0, 2.0, 5.0]),
    st.randoms(use_true_random=False),
)
def test_the_rule(
    counts: list[tuple[int, int, float]], max_loss: float, rng: random.Random
) -> None:
    """Two sweeps of two, tested at half the error each, in whatever order the cells come."""
    where = [(4, 2), (4, 1), (8, 4), (8, 2)]
    cells = [
        make_cell(lost, won, forward=speed, block_size=size, steps=steps)
        for (lost, won, speed), (size, steps) in zip(counts, where, strict=True)
    ]
    choice = choose(rng.sample(cells, 4), BASELINE, max_loss=max_loss, confidence=0.8)
    assert [c.row for c in choice.candidates] == [cell.row for cell in cells]
    passed = [loss_p_value(lost, won, N, max_loss / 100) <= 0.1 for lost, won, _ in counts]
    expected = [passed[0], passed[0] and passed[1], passed[2], passed[2] and passed[3]]
    assert [c.accepted for c in choice.candidates] == expected
    for candidate, right in zip(choice.candidates, passed, strict=True):
        assert (candidate.bound <= max_loss / 100) == right
    usable = [cell.row for cell, good in zip(cells, expected, strict=True) if good]
    fastest = max(row.tokens_per_forward for row in [BASELINE.row, *usable])
    assert choice.row.tokens_per_forward == fastest
    assert choice.row in [BASELINE.row, *usable]


def test_the_baseline_is_left_where_nothing_is_accepted_or_faster() -> None:
    for cells in ([], [BASELINE], [make_cell(50, steps=2)], [make_cell(0, steps=2, forward=0.9)]):
        choice = choose(cells, BASELINE, max_loss=5, confidence=0.95)
        assert (choice.row, choice.bound) == (BASELINE.row, 0)
    few = make_cell(0, n=20, forward=1.0)
    choice = choose([make_cell(0, n=20, steps=2)], few, max_loss=2, confidence=0.95)
    (candidate,) = choice.candidates
    assert not candidate.accepted
    assert "equal answers to 20 problems would not do, use more" in candidate.reason


@pytest.mark.parametrize(
    ("cells", "numbers", "message"),
    [
        ([], (100, 0.9), r"max_loss must lie in \[0, 100\)"),
        ([], (-1, 0.9), "max_loss must lie"),
        ([], (2, 1.0), "confidence must lie between"),
        ([make_cell(0, steps=2)] * 2, (2, 0.9), "two cells for"),
        ([make_cell(0, steps=2, seed=1)], (2, 0.9), "seed is 1 in a cell and 0 in the baseline"),
        ([make_cell(0, steps=2, model="b")], (2, 0.9), "model is 'b' in a cell"),
        ([make_cell(0, steps=2, n=50)], (2, 0.9), "n is 50 in a cell and 200"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    cells: Sequence[Cell], numbers: tuple[float, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose(cells, BASELINE, max_loss=numbers[0], confidence=numbers[1])
