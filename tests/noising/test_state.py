"""Visited states against slow references: which are chosen, and how often."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory
from t3d.decoding.config import DecodingConfig
from t3d.decoding.oracle import decode_one
from t3d.decoding.replay import visited_states
from t3d.decoding.request import Request
from t3d.decoding.rollout import record
from t3d.noising import NoiserInput, TrajectoryState
from t3d.tasks import Example
from t3d.testing import tiny
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

LEVELS = (1.0, 0.75, 0.7, 0.5, 1 / 3, 0.25, 0.125, 0.01)


def slow_view(
    trajectory: Trajectory, block_size: int, rho: float
) -> tuple[list[int], list[bool], list[float]]:
    """x_t, loss positions and path weights of method.md in plain Python, block by block."""
    prompt, size = len(trajectory.prompt_ids), trajectory.block_size
    ids = trajectory.prompt_ids + trajectory.response_ids
    width = -(-len(ids) // block_size) * block_size
    xt = ids + [MASK] * (width - len(ids))
    loss, weight = [False] * width, [0.0] * width
    # When each position was committed; in time, as tuples compare.
    time: dict[int, tuple[float, int]] = {
        prompt + i: ((prompt + i) // size, step) if step >= 0 else (math.inf, 0)
        for i, step in enumerate(trajectory.step_map)
    }
    target = range(prompt, prompt + trajectory.num_response_tokens)
    for start in range(0, width, block_size):
        response = [p for p in range(start, start + block_size) if p in time]
        steps = sorted({time[p] for p in response if time[p][0] < math.inf})
        states = [[p for p in response if time[p] >= step] for step in steps]
        states = [s for s in states if any(p in target for p in s)]
        enough = [s for s in states if len(s) / len(response) >= rho - 1e-9]
        if not enough:
            # There is nothing to learn in this block: no state is asked for.
            assert not any(p in target for p in response)
            continue
        for p in min(enough, key=len):
            xt[p], loss[p] = MASK, p in target
        for p in response:
            if p in target:
                pi = 1 + steps.index(time[p])
                weight[p] = (len(steps) - pi + 1) / len(steps)
    return xt, loss, weight


@given(trajectories(), st.sampled_from(LEVELS))
def test_a_view_is_the_visited_state_nearest_to_rho_from_above(trajectory: Trajectory, rho: float):
    size = trajectory.block_size
    _, view = noised(TrajectoryState(levels=(rho,)), [trajectory], size)
    xt, loss, weight = slow_view(trajectory, size, rho)
    assert view.xt[0].tolist() == xt
    assert view.loss_mask[0].tolist() == loss
    torch.testing.assert_close(view.weight[0], torch.tensor(weight))
    visited = visited_states(trajectory)
    for start in {start for start, _ in visited}:
        assert (start, xt[start : start + size]) in visited


@given(trajectories(block_size=4), st.sampled_from([2, 3, 8]), st.sampled_from(LEVELS))
def test_other_training_blocks_order_tokens_by_rollout_block_and_step(
    trajectory: Trajectory, block_size: int, rho: float
):
    batch, view = noised(TrajectoryState(levels=(rho,)), [trajectory], block_size)
    xt, loss, weight = slow_view(trajectory, block_size, rho)
    learned = BlockLayout(block_size).ceil(int(batch.prompt_length + batch.num_response_tokens))
    assert view.xt[0, :learned].tolist() == xt[:learned]
    assert view.loss_mask[0].tolist() == loss
    torch.testing.assert_close(view.weight[0], torch.tensor(weight))


def test_training_block_8_on_rollout_block_4_by_hand():
    trajectory = Trajectory(
        prompt_id="p",
        prompt_ids=[40] * 8,
        response_ids=[1, 2, 3, 4, 5, 6, 7, 8],
        initial_ids=[MASK] * 8,
        step_map=[1, 0, 2, 3, 0, 0, 2, 1],
        log_probs=[0.0] * 8,
        num_response_tokens=8,
        finish_reason="length",
        block_size=4,
    )
    _, view = noised(TrajectoryState(levels=(0.5,)), [trajectory], 8)
    assert view.xt[0, 8:].tolist() == [1, 2, 3, 4, MASK, MASK, MASK, MASK]
    # Seven steps in time: the last token of block one is the fourth, 5 and 6 come with it next.
    expected = torch.tensor([6, 7, 5, 4, 3, 3, 1, 2]) / 7
    torch.testing.assert_close(view.weight[0, 8:], expected)


@pytest.mark.parametrize("tenths", range(1, 11))
def test_levels_that_binary_fractions_miss(tenths: int):
    """A share of 7 / 10 in float32 is less than 0.7 in float64."""
    items = one_block(1, size=10, prompt=10)
    _, view = noised(TrajectoryState(levels=(tenths / 10,)), items, 10)
    assert view.loss_mask.sum() == tenths


@given(trajectories())
def test_rho_1_is_the_state_before_the_first_step(trajectory: Trajectory):
    """Also where the first steps only commit what follows the stop token."""
    batch, view = noised(TrajectoryState(levels=(1.0,)), [trajectory], trajectory.block_size)
    masked = view.xt[0, : int(batch.length)] == MASK
    assert torch.equal(masked, batch.response[0])
    assert torch.equal(view.loss_mask[0, : int(batch.length)], batch.target[0])


@settings(max_examples=20)
@given(trajectories())
def test_every_visited_state_with_something_to_learn_is_some_level(trajectory: Trajectory):
    size = trajectory.block_size
    end = len(trajectory.prompt_ids) + trajectory.num_response_tokens
    reached = set()
    shares = {count / total for total in range(1, size + 1) for count in range(1, total + 1)}
    for share in shares:
        _, view = noised(TrajectoryState(levels=(share,)), [trajectory], size)
        for start in range(0, view.xt.shape[1], size):
            reached.add((start, *view.xt[0, start : start + size].tolist()))
    learning = {
        (start, *state)
        for start, state in visited_states(trajectory)
        if MASK in state[: end - start]
    }
    assert learning <= reached


@pytest.mark.parametrize("block_size", [1, 4, 8])
@pytest.mark.parametrize("remasking", ["low_confidence_static", "low_confidence_dynamic"])
def test_states_recorded_live_from_a_decoder(
    block_size: int, remasking: Literal["low_confidence_static", "low_confidence_dynamic"]
):
    config = DecodingConfig(
        block_size=block_size,
        denoising_steps=max(1, block_size // 2),
        remasking=remasking,
        confidence_threshold=0.3,
        temperature=1.0,
        max_new_tokens=11,
    )
    model, num_stopped = tiny(vocab_size=51), 0
    for seed in range(4, 9):
        prompt, live = list(range(seed + 1)), []
        completion = decode_one(
            model,
            Request(prompt, seed),
            config,
            mask_token_id=MASK,
            stop_token_ids=(3, 19, 30, 44),
            on_state=lambda start, ids, live=live: live.append((start, *ids)),
        )
        num_stopped += completion.finish_reason == "stop"
        trajectory = record(Example("p", ""), prompt, completion, config)
        chosen = set()
        for key in range(10):
            noiser = TrajectoryState(level_power=0)
            _, view = noised(noiser, [trajectory], block_size, seed=key)
            for start in range(
                len(prompt) - len(prompt) % block_size, view.xt.shape[1], block_size
            ):
                chosen.add((start, *view.xt[0, start : start + block_size].tolist()))
        assert chosen <= set(live)
        assert len(chosen) > len({start for start, *_ in live}) or block_size == 1
    assert num_stopped


@pytest.mark.parametrize("power", [0.0, 1.0, 8.0])
def test_levels_are_drawn_in_proportion_to_their_power(power: float):
    num, levels = 4000, (0.25, 1.0, 0.5)
    noiser = TrajectoryState(levels=levels, level_power=power)
    _, view = noised(noiser, one_block(num), 4)
    share = view.loss_mask[:, 4:].float().mean(1)
    for level in levels:
        probability = level**power / sum(other**power for other in levels)
        assert close(int((share == level).sum()), num, probability)


def test_blocks_draw_their_levels_independently():
    trajectory = Trajectory(
        prompt_id="p",
        prompt_ids=[40] * 4,
        response_ids=[1] * 8,
        initial_ids=[MASK] * 8,
        step_map=[0, 1, 2, 3] * 2,
        log_probs=[0.0] * 8,
        num_response_tokens=8,
        finish_reason="length",
        block_size=4,
    )
    num = 4000
    noiser = TrajectoryState(levels=(0.5, 1.0), level_power=0)
    _, view = noised(noiser, [trajectory] * num, 4)
    full = view.loss_mask[:, 4:].view(num, 2, 4).all(-1)
    for first in (False, True):
        for second in (False, True):
            both = (full[:, 0] == first) & (full[:, 1] == second)
            assert close(int(both.sum()), num, 0.25)


def test_views_of_one_sequence_are_stratified():
    """Two views of two equally likely levels: always one of each, in either order."""
    items, layout = one_block(400), BlockLayout(4)
    one = TrajectoryState(levels=(0.25, 1.0), level_power=0)
    two = TrajectoryState(levels=(0.25, 1.0), level_power=0, num_views=2)
    inputs = NoiserInput(batch_of(items), layout, keys_of(400), VOCABULARY, 0.5)
    [single], views = one(inputs), two(inputs)
    assert torch.equal(views[0].xt, single.xt)
    counts = torch.stack([view.loss_mask.sum(1) for view in views])
    assert counts.sort(0).values.unique(dim=1).tolist() == [[1], [4]]
    assert close(int((counts[0] == 4).sum()), 400, 0.5)
    # Random tokens are drawn for each view.
    replacing = TrajectoryState(levels=(1.0,), random_share=0.5, num_views=2)
    first, second = replacing(inputs)
    both = (first.xt != MASK) & (second.xt != MASK) & first.loss_mask
    assert close(int(both.sum()), 1600, 0.25)


@given(st.lists(trajectories(), min_size=1, max_size=3), SIZES, st.integers(0, 99))
def test_random_tokens_stand_only_at_loss_positions(
    items: list[Trajectory], block_size: int, seed: int
):
    batch, plain = noised(TrajectoryState(), items, block_size, seed)
    _, mixed = noised(TrajectoryState(random_share=1.0), items, block_size, seed)
    assert torch.equal(mixed.loss_mask, plain.loss_mask)
    assert torch.equal(mixed.weight, plain.weight)
    assert torch.equal(mixed.xt != plain.xt, plain.loss_mask)
    assert not (mixed.xt[plain.loss_mask] == MASK).any()
    _, full = noised(TrajectoryState(random_share=1.0, random_in="full"), items, block_size, seed)
    response = torch.nn.functional.pad(
        batch.response, (0, plain.xt.shape[1] - batch.response.shape[1])
    )
    visible = (response & (plain.xt != MASK)).unflatten(1, (-1, block_size)).any(-1, keepdim=True)
    only_full = plain.loss_mask & ~visible.repeat_interleave(block_size, 1).flatten(1)
    assert torch.equal(full.xt != plain.xt, only_full)
    assert torch.equal(full.xt[only_full], mixed.xt[only_full])


def test_random_tokens_are_the_share_asked_for_and_any_token_but_the_mask():
    num = 5000
    noiser = TrajectoryState(levels=(1.0,), random_share=0.1)
    _, view = noised(noiser, one_block(num), 4)
    tokens = view.xt[:, 4:]
    assert close(int((tokens != MASK).sum()), num * 4, 0.1)
    drawn = tokens[tokens != MASK]
    counts = drawn.bincount(minlength=VOCABULARY.size)
    assert counts.argmin() == MASK
    assert all(close(int(c), len(drawn), 1 / 63) for i, c in enumerate(counts) if i != MASK)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": ()}, "levels is empty"),
        ({"levels": (0.5, 0.0)}, "levels must lie in"),
        ({"levels": (1.5,)}, "levels must lie in"),
        ({"random_share": -0.1}, "random_share must lie in"),
        ({"random_in": "ful"}, "random_in must be one of all, full, got 'ful'"),
        ({"num_views": 0}, "num_views must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TrajectoryState(**settings)
