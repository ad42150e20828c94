"""The states that a decoder visited, rebuilt from a trajectory."""

from __future__ import annotations

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory


def visited_states(trajectory: Trajectory) -> list[tuple[int, list[int]]]:
    """First position and ids of the block before each denoising step, in order."""
    ids = trajectory.prompt_ids + trajectory.response_ids
    initial = trajectory.prompt_ids + trajectory.initial_ids
    steps = [-1] * len(trajectory.prompt_ids) + trajectory.step_map
    states = []
    first = BlockLayout(trajectory.block_size).floor(len(trajectory.prompt_ids))
    for start in range(first, len(ids), trajectory.block_size):
        block = slice(start, start + trajectory.block_size)
        for step in range(max(steps[block]) + 1):
            state = [
                token if 0 <= committed < step else start_token
                for token, start_token, committed in zip(
                    ids[block], initial[block], steps[block], strict=True
                )
            ]
            states.append((start, state))
    return states
