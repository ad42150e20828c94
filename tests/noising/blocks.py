"""Trajectories of any kind, and the view of one noiser."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_row
from t3d.noising import Noiser, NoiserInput, View, Vocabulary

VOCABULARY = Vocabulary(size=64, mask_token_id=50, pad_token_id=0, base_size=64)


MASK = VOCABULARY.mask_token_id


PAD = 7


SIZES = st.sampled_from([1, 3, 4, 8])


@st.composite
def trajectories(draw: st.DrawFn, block_size: int | None = None) -> Trajectory:
    """Whatever a decoder could produce: any number of tokens a step, any stop."""
    size = block_size or draw(SIZES)
    prompt = draw(st.lists(st.integers(0, 49), min_size=1, max_size=10))
    head = len(prompt) % size
    num = draw(st.integers(1, 3)) * size - head
    step_map: list[int] = []
    while len(step_map) < num:
        width = size - (len(prompt) + len(step_map)) % size
        steps = draw(st.lists(st.integers(0, size - 1), min_size=width, max_size=width))
        # Every step commits something.
        step_map += [sorted(set(steps)).index(step) for step in steps]
    last = len(step_map) - (size - head if num == size - head else size)
    end = draw(st.integers(last + 1, num))
    stopped = draw(st.booleans())
    if stopped:
        # Decoding ends after the step that completes everything up to the stop token.
        final = max(step_map[last:end])
        step_map[last:] = [step if step <= final else -1 for step in step_map[last:]]
    tokens = draw(st.lists(st.integers(0, 49), min_size=num, max_size=num))
    return Trajectory(
        prompt_id="p",
        prompt_ids=prompt,
        response_ids=[t if s >= 0 else MASK for t, s in zip(tokens, step_map, strict=True)],
        initial_ids=[MASK] * num,
        step_map=step_map,
        log_probs=[0.0] * num,
        num_response_tokens=end,
        finish_reason="stop" if stopped else "length",
        block_size=size,
    )


def batch_of(items: list[Trajectory]) -> TrajectoryBatch:
    return TrajectoryBatch.collate([training_row(t, i) for i, t in enumerate(items)], PAD)


def keys_of(num: int, seed: int = 0) -> Tensor:
    return torch.arange(num) * 1_000_003 + seed


def noised(
    noiser: Noiser, items: list[Trajectory], block_size: int, seed: int = 0
) -> tuple[TrajectoryBatch, View]:
    batch = batch_of(items)
    keys = keys_of(len(items), seed)
    [view] = noiser(NoiserInput(batch, BlockLayout(block_size), keys, VOCABULARY, 0.5))
    return batch, view


def one_block(num: int, size: int = 4, prompt: int = 4) -> list[Trajectory]:
    """`num` times the same block, one token a step from the right."""
    width = size - prompt % size
    trajectory = Trajectory(
        prompt_id="p",
        prompt_ids=[40] * prompt,
        response_ids=list(range(width)),
        initial_ids=[MASK] * width,
        step_map=list(range(width))[::-1],
        log_probs=[0.0] * width,
        num_response_tokens=width,
        finish_reason="length",
        block_size=size,
    )
    return [trajectory] * num


def close(count: float, num: int, probability: float) -> bool:
    """Within five standard deviations of a binomial's mean."""
    return abs(count - num * probability) < 5 * math.sqrt(num * probability * (1 - probability))
