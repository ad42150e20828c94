"""The views of every method: which states they show, and what hides what."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_row
from t3d.decoding.replay import visited_states
from t3d.noising import (
    ComplementaryMask,
    ComplementaryState,
    Noiser,
    NoiserInput,
    RandomMask,
    StatePair,
    TrajectoryState,
    TrajectorySteps,
    View,
    Vocabulary,
)
from t3d.training.config import MethodConfig
from t3d.training.methods import METHODS, build_method

MASK, SIZE = 50, 4
VOCABULARY = Vocabulary(64, MASK, 0, 64)


def test_ids_that_are_banned_are_no_noise() -> None:
    batch = TrajectoryBatch.collate([training_row(t, i) for i, t in enumerate(trajectories(8))], 0)
    banned = tuple(range(5, 50))
    vocabulary, keys = Vocabulary(64, MASK, 0, 64, banned), torch.arange(8)
    inputs = NoiserInput(batch, BlockLayout(SIZE), keys, vocabulary, 0.5)
    (view,) = TrajectoryState(random_share=1.0)(inputs)
    shown = set(view.xt[view.loss_mask].tolist())
    assert len(shown) > 5
    assert shown.isdisjoint({MASK, *banned})


def trajectories(num: int, seed: int = 0) -> list[Trajectory]:
    """Any number of tokens a step; the last block of every second one stops early."""
    rng, out = random.Random(seed), []
    for number in range(num):
        prompt = [rng.randrange(MASK) for _ in range(rng.randint(1, 9))]
        step_map: list[int] = []
        while len(step_map) < 9 or (len(prompt) + len(step_map)) % SIZE:
            width = SIZE - (len(prompt) + len(step_map)) % SIZE
            steps = [rng.randrange(SIZE) for _ in range(width)]
            step_map += [sorted(set(steps)).index(step) for step in steps]
        length = len(step_map)
        end = length - (rng.randrange(SIZE) if number % 2 else 0)
        if end < length:
            final = max(step_map[length - SIZE : end])
            step_map[-SIZE:] = [step if step <= final else -1 for step in step_map[-SIZE:]]
        ids = [MASK if step < 0 else rng.randrange(MASK) for step in step_map]
        out.append(
            Trajectory(
                prompt_id="p",
                prompt_ids=prompt,
                response_ids=ids,
                initial_ids=[MASK] * length,
                step_map=step_map,
                log_probs=[0.0] * length,
                num_response_tokens=end,
                finish_reason="length",
                block_size=SIZE,
            )
        )
    return out


ITEMS = trajectories(40)
BATCH = TrajectoryBatch.collate([training_row(t, i) for i, t in enumerate(ITEMS)], 7)
WIDTH = BlockLayout(SIZE).ceil(BATCH.input_ids.shape[1])
TARGET, RESPONSE = (
    torch.nn.functional.pad(mask, (0, WIDTH - mask.shape[1]))
    for mask in (BATCH.target, BATCH.response)
)


def views_of(
    noiser: Noiser, batch: TrajectoryBatch = BATCH, seed: int = 0, progress: float = 0.5
) -> list[View]:
    keys = torch.arange(len(batch.length)) * 1_000_003 + seed
    return noiser(NoiserInput(batch, BlockLayout(SIZE), keys, VOCABULARY, progress))


def shown_states(view: View) -> list[set[tuple[int, ...]]]:
    """(start, *ids) of every block with loss, for each sequence."""
    out = []
    for row in range(len(ITEMS)):
        states = set()
        for start in range(0, WIDTH, SIZE):
            if view.loss_mask[row, start : start + SIZE].any():
                states.add((start, *view.xt[row, start : start + SIZE].tolist()))
        out.append(states)
    return out


VISITING: dict[str, tuple[Noiser, int]] = {
    "naive_td": (METHODS["naive_td"].noiser, 1),
    "t3d": (build_method(MethodConfig("t3d", noiser={"random_share": 0.0})).noiser, 1),
    "d3llm": (METHODS["d3llm"].noiser, 1),
    "cdlm": (METHODS["cdlm"].noiser, 2),
}
"""Noisers and how many of their views are states of the teacher."""


@pytest.mark.parametrize("name", list(VISITING))
def test_trajectory_methods_show_only_states_that_the_teacher_visited(name: str):
    noiser, num = VISITING[name]
    for progress in (0.0, 0.9):
        views = views_of(noiser, progress=progress)[:num]
        assert all(shown_states(views[0]))
        for view in views:
            for item, shown in zip(ITEMS, shown_states(view), strict=True):
                assert shown <= {(start, *ids) for start, ids in visited_states(item)}


@pytest.mark.parametrize("noiser", [ComplementaryMask(), ComplementaryState(0.2, 0.75)])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_complementary_views_partition_the_targets(noiser: Noiser, progress: float):
    first, second = views_of(noiser, progress=progress)
    assert not (first.loss_mask & second.loss_mask).any()
    assert torch.equal(first.loss_mask | second.loss_mask, TARGET)
    assert first.loss_mask.any()
    assert second.loss_mask.any()
    for view in (first, second):
        assert (view.weight == 1).all()
        assert torch.equal(view.masked & TARGET, view.loss_mask)


def test_a_complementary_mask_hides_its_share():
    first, second = views_of(ComplementaryMask(share=0.8))
    assert 0.7 < int(first.loss_mask.sum()) / int(TARGET.sum()) < 0.9
    for view in (first, second):
        # What follows the stop token is never known before it.
        assert (view.masked | ~(RESPONSE & ~TARGET)).all()


def test_the_complementary_states_level_grows_with_progress():
    noiser = ComplementaryState(0.25, 1.0)
    shares = [int(views_of(noiser, progress=p)[0].loss_mask.sum()) for p in (0.0, 0.5, 1.0)]
    assert shares == sorted(set(shares))
    assert shares[2] == int(TARGET.sum())


def test_the_second_state_of_a_pair_is_later_in_every_block():
    for seed in range(5):
        early, late, random_mask = views_of(StatePair(), seed=seed)
        assert not (late.masked & ~early.masked).any()
        more = (early.loss_mask & ~late.loss_mask).unflatten(1, (-1, SIZE)).any(-1)
        assert torch.equal(more, TARGET.unflatten(1, (-1, SIZE)).any(-1))
        assert late.loss_mask.any()
        assert (random_mask.weight[random_mask.loss_mask] >= 1).all()


def test_both_states_of_a_pair_are_drawn_uniformly():
    """One token a step: four states and the finished block."""
    item = dataclasses.replace(
        ITEMS[0],
        prompt_ids=[1] * SIZE,
        response_ids=[1, 2, 3, 4],
        initial_ids=[MASK] * SIZE,
        step_map=[3, 1, 0, 2],
        log_probs=[0.0] * SIZE,
        num_response_tokens=SIZE,
    )
    num = 4000
    batch = TrajectoryBatch.collate([training_row(item, 0)] * num, 7)
    early, late, _ = views_of(StatePair(), batch)
    a, b = SIZE - early.loss_mask.sum(1), SIZE - late.loss_mask.sum(1)
    for i in range(SIZE):
        for j in range(i + 1, SIZE + 1):
            expected = num / SIZE / (SIZE - i)
            count = int(((a == i) & (b == j)).sum())
            assert abs(count - expected) < 5 * expected**0.5


NOISERS = {
    name: method.noiser for name, method in METHODS.items() if name not in ("t3d", "redi_coupled")
} | {"t3d": TrajectoryState()}


@pytest.mark.parametrize("name", list(NOISERS))
def test_masked_positions_show_the_initial_noise(name: str):
    """Not only mask tokens, where the decoder started from random ones."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(100, 200, BATCH.input_ids.shape, generator=generator)
    batch = dataclasses.replace(
        BATCH, initial_ids=torch.where(BATCH.response, noise, BATCH.input_ids)
    )
    grow = (0, WIDTH - BATCH.input_ids.shape[1])
    clean, initial = (
        torch.nn.functional.pad(ids, grow, value=MASK)
        for ids in (batch.input_ids, batch.initial_ids)
    )
    for view in views_of(NOISERS[name], batch):
        expected = torch.where(view.masked, initial, clean)
        expected[torch.arange(WIDTH) >= BATCH.length[:, None]] = MASK
        assert torch.equal(view.xt, expected)
        assert not (view.masked & ~RESPONSE).any()


# The others show states that nothing is drawn for.
@pytest.mark.parametrize(
    "name", [n for n, own in NOISERS.items() if n != "d3llm" and own != TrajectorySteps()]
)
def test_noise_is_a_function_of_the_key(name: str):
    def ids(seed: int) -> Tensor:
        return torch.stack([view.xt for view in views_of(NOISERS[name], seed=seed)])

    assert torch.equal(ids(0), ids(0))
    assert not torch.equal(ids(0), ids(1))


def test_the_uniform_weighting_drops_the_weight_of_the_nelbo():
    nelbo, uniform = (views_of(RandomMask(num_views=2, weighting=w)) for w in ("nelbo", "uniform"))
    for a, b in zip(nelbo, uniform, strict=True):
        assert torch.equal(a.xt, b.xt)
        assert (b.weight == 0.5).all()
        assert (a.weight[a.loss_mask] > 0.5).any()
