"""Random masks against the integral that they estimate."""

from __future__ import annotations

import math
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory
from t3d.noising import NoiserInput, RandomMask
from tests.noising.blocks import (
    MASK,
    SIZES,
    VOCABULARY,
    batch_of,
    close,
    keys_of,
    noised,
    one_block,
    trajectories,
)


@given(st.lists(trajectories(), min_size=1, max_size=3), SIZES, st.integers(0, 99))
def test_a_random_mask_leaves_what_follows_the_stop_token_masked(
    items: list[Trajectory], block_size: int, seed: int
):
    batch, view = noised(RandomMask(), items, block_size, seed)
    width = view.xt.shape[1] - batch.input_ids.shape[1]
    grow = torch.nn.functional.pad
    response, target = grow(batch.response, (0, width)), grow(batch.target, (0, width))
    ids = grow(batch.input_ids, (0, width), value=MASK)
    inside = torch.arange(view.xt.shape[1]) < batch.length[:, None]
    expected = view.loss_mask | (response & ~target) | ~inside
    assert torch.equal(view.xt, ids.masked_fill(expected, MASK))
    assert not (view.loss_mask & ~target).any()
    count = target.unflatten(1, (-1, block_size)).sum(-1)
    masked = view.loss_mask.unflatten(1, (-1, block_size)).sum(-1)
    assert torch.equal(masked > 0, count > 0)
    weight = view.weight.unflatten(1, (-1, block_size))
    expected_weight = (count / masked.clamp(min=1)).float()[..., None].expand(weight.shape)
    assert torch.equal(weight, expected_weight)


def subsets(num: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(range(num), k) for k in range(1, num + 1)))


@pytest.mark.parametrize(("num", "num_views"), [(3, 1), (4, 1), (4, 2)])
def test_the_expected_random_mask_loss_is_the_nelbo(num: int, num_views: int):
    """Against the integral over t of (1/t) E[sum of the masked tokens' losses]."""
    draws = 8000
    batch = batch_of(one_block(draws, prompt=8 - num))
    noised = NoiserInput(batch, BlockLayout(4), keys_of(draws), VOCABULARY, 0.5)
    views = RandomMask(num_views)(noised)
    assert len(views) == num_views
    generator = np.random.default_rng(0)
    nelbo = exact = 0.0
    # The integrand is a polynomial of degree num - 1: three nodes are exact up to degree 5.
    nodes, node_weights = np.polynomial.legendre.leggauss(3)
    times = (nodes + 1) / 2
    for subset in subsets(num):
        size, losses = len(subset), generator.exponential(size=len(subset))
        density = times**size * (1 - times) ** (num - size)
        nelbo += losses.sum() * (node_weights / 2 * density / times).sum()
        probability = 1 / num / math.comb(num, size)
        exact += probability * num / size * losses.sum()
        pattern = torch.tensor([i in subset for i in range(num)])
        for view in views:
            chosen = (view.loss_mask[:, 8 - num :] == pattern).all(1)
            assert close(int(chosen.sum()), draws, probability)
            # Losses of all views are added up.
            weight = torch.tensor(num / size / num_views).float()
            assert (view.weight[chosen, 8 - num :] == weight).all()
    assert exact == pytest.approx(nelbo, rel=1e-12)


def test_views_of_a_random_mask_are_stratified():
    batch = batch_of(one_block(400))
    noised = NoiserInput(batch, BlockLayout(4), keys_of(400), VOCABULARY, 0.5)
    views = RandomMask(num_views=2)(noised)
    counts = torch.stack([view.loss_mask.sum(1) for view in views])
    assert (counts[0] - counts[1]).abs().unique().tolist() == [2]


def test_a_random_mask_has_a_view():
    with pytest.raises(ValueError, match="num_views must be at least 1, got 0"):
        RandomMask(num_views=0)
