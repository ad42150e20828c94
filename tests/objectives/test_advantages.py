"""Advantages against plain arithmetic."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from t3d.objectives import GroupAdvantage


def z(values: list[float]) -> list[float]:
    mean, spread = fmean(values), pstdev(values)
    # Rewards that cancel leave their rounding, which says nothing.
    return [(value - mean) / spread if spread > 1e-9 else 0.0 for value in values]


@example([[(False, 3.5), (True, 1.0), (True, 1.0)]], 1.0, True)
@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.sampled_from([1.0, 1.005, 2.0, 3.5])), min_size=3,
                 max_size=3),
        min_size=1, max_size=4,
    ),
    st.sampled_from([0.0, 1.0, 0.3]),
    st.booleans(),
)  # fmt: skip
def test_each_reward_is_normalised_by_itself(
    groups: list[list[tuple[bool, float]]], weight: float, across: bool
) -> None:
    answer, speed = (
        torch.tensor([[float(one[part]) for one in group] for group in groups], dtype=torch.float64)
        for part in (0, 1)
    )
    rule = GroupAdvantage(group_size=3, speed_weight=weight, across=across)
    advantage, kept = rule(answer, speed)
    expected, keep = [], []
    for group in groups:
        right, fast = [float(r) for r, _ in group], [s for _, s in group]
        varied = max(fast) - min(fast) >= 0.01 if weight else len(set(right)) > 1
        keep.append(any(right) and varied)
        expected.append([a + weight * s for a, s in zip(z(right), z(fast), strict=True)])
    assert kept.tolist() == keep
    if across and any(keep):
        flat = z([a for own, k in zip(expected, keep, strict=True) if k for a in own])
        assert advantage[kept].flatten().tolist() == pytest.approx(flat, abs=1e-9)
    else:
        wanted = [own for own, k in zip(expected, keep, strict=True) if k]
        for row, own in zip(advantage[kept].tolist(), wanted, strict=True):
            assert row == pytest.approx(own, abs=1e-9)
    assert all(math.isfinite(x) for x in advantage.flatten().tolist())


def test_speed_does_not_outweigh_the_answer_by_its_scale() -> None:
    """A right slow response and a wrong fast one come out alike, whatever the unit of speed."""
    answer = torch.tensor([[1.0, 0.0]])
    for unit in (1.0, 1000.0):
        advantage, _ = GroupAdvantage(group_size=2)(answer, torch.tensor([[1.0, 2.0]]) * unit)
        assert advantage.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"speed_weight": -1.0}, "speed_weight must not be negative"),
        ({"answers": "gold"}, "answers must be one of labels, teacher"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupAdvantage(**settings)
