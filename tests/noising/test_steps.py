"""Every step of a trajectory as a view."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_row
from t3d.decoding.replay import visited_states
from t3d.noising import NoiserInput, TrajectorySteps
from tests.noising.blocks import MASK, VOCABULARY, trajectories


@settings(deadline=None, max_examples=60)
@given(st.lists(trajectories(block_size=4), min_size=1, max_size=3), st.integers(1, 3))
def test_every_target_is_a_loss_token_once_in_the_state_before_its_step(
    items: list[Trajectory], merge: int
) -> None:
    batch = TrajectoryBatch.collate([training_row(t, i) for i, t in enumerate(items)], 0)
    layout, keys = BlockLayout(4), torch.arange(len(items))
    views = TrajectorySteps(merge)(NoiserInput(batch, layout, keys, VOCABULARY, 0.0))
    taken = torch.stack([view.loss_mask for view in views]).sum(0)
    width = batch.input_ids.shape[1]
    assert torch.equal(taken[:, :width], batch.target.long())
    assert not taken[:, width:].any()
    for row, t in enumerate(items):
        start = len(t.prompt_ids)
        visited = {(at, tuple(ids)) for at, ids in visited_states(t)}
        for number, view in enumerate(views):
            for i in range(t.num_response_tokens):
                if not view.loss_mask[row, start + i]:
                    continue
                assert t.step_map[i] // merge == number
                assert view.xt[row, start + i] == MASK
                block = layout.floor(start + i)
                state = tuple(view.xt[row, block : block + 4].tolist())
                assert (block, state) in visited
                # It is the state before the first of the merged steps.
                shown = [
                    j
                    for j, step in enumerate(t.step_map)
                    if layout.floor(start + j) == block and 0 <= step < number * merge
                ]
                assert all(view.xt[row, start + j] == t.response_ids[j] for j in shown)
                num_masked = sum(token == MASK for token in state)
                head = max(0, start - block)
                assert num_masked == 4 - head - len(shown)


def test_merge_is_a_count() -> None:
    with pytest.raises(ValueError, match="merge must be at least 1, got 0"):
        TrajectorySteps(0)
