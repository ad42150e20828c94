from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from t3d.training.data import LengthGroupedSampler

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def order(sampler: LengthGroupedSampler, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.integers(0, 9))
def test_an_epoch_visits_whole_batches_of_distinct_sequences(
    lengths: list[int], batch_size: int, window: int, seed: int, epoch: int
):
    sampler = LengthGroupedSampler(lengths, batch_size, seed=seed, window=window)
    indices = order(sampler, epoch)
    assert len(indices) == len(sampler) == len(lengths) // batch_size * batch_size
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(len(lengths)))
    again = LengthGroupedSampler(lengths, batch_size, seed=seed, window=window)
    assert order(again, epoch) == indices


@given(st.integers(1, 30), st.integers(0, 99))
def test_every_sequence_is_visited_where_batches_divide(num_batches: int, seed: int):
    sampler = LengthGroupedSampler(list(range(4 * num_batches)), 4, seed=seed)
    assert sorted(order(sampler)) == list(range(4 * num_batches))
    assert sampler.num_batches == num_batches


def test_the_order_is_random_and_another_one_at_every_epoch_and_seed():
    lengths = torch.randint(1, 50, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthGroupedSampler(lengths, 8, seed=0)
    orders = [order(sampler, epoch) for epoch in range(4)]
    orders.append(order(LengthGroupedSampler(lengths, 8, seed=1)))
    assert len({tuple(o) for o in orders}) == 5
    # Neither do the same sequences always meet in a batch.
    first, second = ({frozenset(o[i : i + 8]) for i in range(0, 400, 8)} for o in orders[:2])
    assert len(first & second) < 5


def test_sequences_that_fill_no_batch_wait_for_another_epoch():
    sampler = LengthGroupedSampler([5] * 10, 4, seed=0)
    left_out = [frozenset(range(10)) - set(order(sampler, epoch)) for epoch in range(30)]
    assert all(len(left) == 2 for left in left_out)
    assert frozenset.union(*left_out) == set(range(10))


def test_batches_hold_similar_lengths_in_random_order():
    lengths = torch.randint(1, 200, (640,), generator=torch.Generator().manual_seed(0))
    batches = lengths[order(LengthGroupedSampler(lengths.tolist(), 10, seed=0))].view(64, 10)
    spread = batches.max(1).values - batches.min(1).values
    shuffled = lengths[torch.randperm(640, generator=torch.Generator().manual_seed(1))].view(64, 10)
    assert (
        spread.float().mean() < (shuffled.max(1).values - shuffled.min(1).values).float().mean() / 4
    )
    means = batches.float().mean(1)
    assert ((means[1:] < means[:-1]).float().mean() - 0.5).abs() < 0.25
