from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t3d.core.trajectory import (
    NEVER,
    VISIBLE,
    Trajectory,
    TrajectoryBatch,
    labelled_row,
    training_row,
)

PAD = 99
FILL = 98
MASK = 97
SIZES = st.integers(1, 8)
IDS = st.lists(st.integers(0, 90), min_size=1, max_size=10)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Any step map over whole blocks; the text may end anywhere in the response."""
    size = draw(SIZES)
    prompt = draw(IDS)
    head = len(prompt) % size
    num = draw(st.integers(1, 3)) * size - head
    step_map = draw(st.lists(st.integers(-1, size - 1), min_size=num, max_size=num))
    return Trajectory(
        prompt_id="p",
        prompt_ids=prompt,
        response_ids=draw(st.lists(st.integers(0, 90), min_size=num, max_size=num)),
        initial_ids=draw(st.lists(st.integers(0, MASK), min_size=num, max_size=num)),
        step_map=step_map,
        log_probs=[0.0] * num,
        num_response_tokens=draw(st.integers(1, num)),
        finish_reason="stop",
        block_size=size,
    )


def replay(trajectory: Trajectory) -> list[int]:
    """Decode order by walking the passes: blocks left to right, steps upwards."""
    size, start = trajectory.block_size, len(trajectory.prompt_ids)
    order, rank = [NEVER] * len(trajectory.step_map), 0
    for block in range(0, start + len(order), size):
        for step in range(size):
            committed = [
                position - start
                for position in range(block, block + size)
                if position >= start and trajectory.step_map[position - start] == step
            ]
            for i in committed:
                order[i] = rank
            rank += bool(committed)
    return order


@given(trajectories())
def test_decode_order_ranks_the_passes_that_committed(trajectory: Trajectory):
    assert trajectory.decode_order() == replay(trajectory)


def test_decode_order_on_a_prompt_that_ends_inside_a_block():
    """Block 4: the prompt's sixth token leaves two positions of its block to decode."""
    trajectory = Trajectory(
        prompt_id="p",
        prompt_ids=[1] * 6,
        response_ids=[2] * 6,
        initial_ids=[MASK] * 6,
        step_map=[1, 0, 2, 0, 2, -1],
        log_probs=[0.0] * 6,
        num_response_tokens=5,
        finish_reason="stop",
        block_size=4,
    )
    assert trajectory.decode_order() == [1, 0, 3, 2, 3, NEVER]


@pytest.mark.parametrize(
    "wrong",
    [{"step_map": [0]}, {"log_probs": []}, {"initial_ids": [MASK]}, {"num_response_tokens": 0}],
)
def test_a_trajectory_is_consistent(wrong: dict[str, Any]):
    right: dict[str, Any] = {
        "prompt_id": "p",
        "prompt_ids": [1],
        "response_ids": [2, 3],
        "initial_ids": [MASK, MASK],
        "step_map": [0, 1],
        "log_probs": [0.0, 0.0],
        "num_response_tokens": 2,
        "finish_reason": "length",
        "block_size": 3,
    }
    Trajectory(**right)
    with pytest.raises(AssertionError):
        Trajectory(**{**right, **wrong})


@given(st.lists(trajectories(), min_size=1, max_size=4))
def test_collate_keeps_every_sequence_and_pads_on_the_right(items: list[Trajectory]):
    rows = [training_row(item, index=10 + i) for i, item in enumerate(items)]
    batch = TrajectoryBatch.collate(rows, PAD)
    width = max(len(t.prompt_ids) + len(t.response_ids) for t in items)
    assert batch.input_ids.shape == batch.decode_order.shape == (len(items), width)
    for i, item in enumerate(items):
        ids = item.prompt_ids + item.response_ids
        padding = width - len(ids)
        order = [VISIBLE] * len(item.prompt_ids) + replay(item) + [VISIBLE] * padding
        assert batch.input_ids[i].tolist() == ids + [PAD] * padding
        assert batch.decode_order[i].tolist() == order
        initial = item.prompt_ids + item.initial_ids + [PAD] * padding
        assert batch.initial_ids[i].tolist() == initial
        assert batch.prompt_length[i] == len(item.prompt_ids)
        assert batch.length[i] == len(ids)
        assert batch.num_response_tokens[i] == item.num_response_tokens
        assert batch.index[i] == 10 + i
        response = [len(item.prompt_ids) <= p < len(ids) for p in range(width)]
        text_end = len(item.prompt_ids) + item.num_response_tokens
        assert batch.response[i].tolist() == response
        assert batch.target[i].tolist() == [r and p < text_end for p, r in enumerate(response)]
        recorded = [0.0] * len(item.prompt_ids) + item.log_probs + [0.0] * padding
        assert batch.log_probs[i].tolist() == pytest.approx(recorded)
    floats = {name for name, part in batch.as_dict().items() if part.dtype == torch.float32}
    assert floats == {"log_probs", "advantage", "right", "average_length"}
    assert all(
        tensor.dtype == torch.int64
        for name, tensor in batch.as_dict().items()
        if name not in floats
    )


@given(trajectories())
def test_a_batch_survives_as_a_dictionary(trajectory: Trajectory):
    batch = TrajectoryBatch.collate([training_row(trajectory, 0)], PAD)
    again = TrajectoryBatch(**batch.as_dict())
    assert all(torch.equal(again.as_dict()[k], v) for k, v in batch.as_dict().items())


@given(IDS, IDS, SIZES)
def test_labelled_data_fills_its_last_block_and_takes_loss_there(
    prompt: list[int], response: list[int], size: int
):
    row = labelled_row(prompt, response, 3, fill_id=FILL, mask_id=MASK, block_size=size)
    ids, order = row["input_ids"], row["decode_order"]
    num_filled = len(ids) - len(prompt) - len(response)
    assert ids == prompt + response + [FILL] * num_filled
    assert len(ids) % size == 0
    assert 0 <= num_filled < size
    assert row["initial_ids"] == prompt + [MASK] * (len(ids) - len(prompt))
    # One token at a time, from the left.
    assert order == [VISIBLE] * len(prompt) + list(range(len(ids) - len(prompt)))
    batch = TrajectoryBatch.collate([row], PAD)
    assert torch.equal(batch.target, batch.response)
    assert batch.target.sum() == len(response) + num_filled
    assert batch.index.tolist() == [3]
