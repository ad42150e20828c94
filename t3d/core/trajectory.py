"""One decoded response and how it was decoded; batches of them as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from t3d.core.blocks import BlockLayout

FinishReason = Literal["stop", "length"]

VISIBLE = -1
"""Decode order of tokens that were never masked: the prompt."""
NEVER = 1 << 30
"""Decode order of positions that were still masked when decoding ended."""


@dataclass(frozen=True)
class Trajectory:
    """A response as token ids, with the denoising step that committed each of them.

    The response runs to the end of its last block, so that every visited state can be
    rebuilt; the text ends after `num_response_tokens`.
    """

    prompt_id: str
    prompt_ids: list[int]
    response_ids: list[int]
    """Token ids up to the end of the last block; the mask id where nothing was committed."""
    initial_ids: list[int]
    """x_T, what each response position showed until it was committed: the mask id, or the
    random token of `DecodingConfig.random_share` (ReDi, arXiv:2507.15897)."""
    step_map: list[int]
    """0-based denoising step within the block that committed the token, -1 for none."""
    log_probs: list[float]
    """Untempered log-probability (nats) at commit; 0.0 where nothing was committed."""
    num_response_tokens: int
    """Number of tokens up to and including the stop token."""
    finish_reason: FinishReason
    block_size: int
    """Block size of the decoder that recorded the trajectory."""
    answer: str | None = None
    """Gold answer, if known. Label-free methods never read it."""

    def __post_init__(self) -> None:
        assert len(self.response_ids) == len(self.initial_ids)
        assert len(self.response_ids) == len(self.step_map) == len(self.log_probs)
        assert 0 < self.num_response_tokens <= len(self.response_ids)

    def decode_order(self) -> list[int]:
        """The rank of each response token's (block, step) among those that committed tokens.

        Tokens committed in one forward pass share a rank; NEVER for masked positions.
        """
        start = len(self.prompt_ids)
        pairs = [
            ((start + i) // self.block_size, step) if step >= 0 else None
            for i, step in enumerate(self.step_map)
        ]
        rank = {pair: i for i, pair in enumerate(sorted({p for p in pairs if p is not None}))}
        return [NEVER if pair is None else rank[pair] for pair in pairs]


@dataclass(frozen=True)
class TrajectoryBatch:
    """Right-padded sequences: prompt, response, and the order in which it was decoded."""

    input_ids: Tensor
    """x0, int64 [B, L]."""
    initial_ids: Tensor
    """x_T, int64 [B, L]; `input_ids` where nothing was ever masked: prompts and padding."""
    prompt_length: Tensor
    """Number of prompt tokens, int64 [B]."""
    length: Tensor
    """Number of tokens of prompt and response, the whole last block included, int64 [B]."""
    num_response_tokens: Tensor
    """Number of response tokens that take loss, int64 [B]."""
    decode_order: Tensor
    """Rank at which each token was committed, int64 [B, L]; VISIBLE for prompts and padding, NEVER
        where still masked."""
    index: Tensor
    """Number of the sequence in its data set, int64 [B]; the key of its random numbers."""
    log_probs: Tensor
    """Untempered log-probability at which each response token was committed, float32 [B, L]; 0 for
        prompts, padding and answers that no model decoded."""
    advantage: Tensor
    """How much better than its group the response is, float32 [B]; 0 where nothing was rewarded."""
    right: Tensor
    """1 where the response earned the full reward of its answer, else 0, float32 [B]."""
    average_length: Tensor
    """Average number of loss tokens of the sequences trained on together, float32 [B]."""

    @property
    def position(self) -> Tensor:
        """[1, L]."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device)[None]

    @property
    def response(self) -> Tensor:
        """Positions of the response, whole last block included, bool [B, L]."""
        inside = self.position < self.length[:, None]
        return inside & (self.position >= self.prompt_length[:, None])

    @property
    def target(self) -> Tensor:
        """Response positions up to and including the stop token, bool [B, L]."""
        end = self.prompt_length + self.num_response_tokens
        return self.response & (self.position < end[:, None])

    def as_dict(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def collate(cls, rows: Sequence[dict[str, Any]], pad_token_id: int) -> TrajectoryBatch:
        """Pad rows as `training_row` makes them."""
        width = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, fill: float) -> Tensor:
            return torch.tensor([r[name] + [fill] * (width - len(r[name])) for r in rows])

        def scalar(name: str) -> Tensor:
            return torch.tensor([row[name] for row in rows])

        return cls(
            input_ids=padded("input_ids", pad_token_id),
            initial_ids=padded("initial_ids", pad_token_id),
            prompt_length=scalar("prompt_length"),
            length=torch.tensor([len(row["input_ids"]) for row in rows]),
            num_response_tokens=scalar("num_response_tokens"),
            decode_order=padded("decode_order", VISIBLE),
            index=scalar("index"),
            log_probs=padded("log_probs", 0.0),
            advantage=scalar("advantage"),
            right=scalar("right"),
            average_length=scalar("average_length"),
        )


_UNREWARDED = {"advantage": 0.0, "right": 0.0, "average_length": 1.0}


def training_row(trajectory: Trajectory, index: int, **reward: float) -> dict[str, Any]:
    """One row for `TrajectoryBatch.collate`.

    Args:
        reward: advantage, right and average_length of a rewarded response.
    """
    prompt = trajectory.prompt_ids
    return {
        "input_ids": prompt + trajectory.response_ids,
        "initial_ids": prompt + trajectory.initial_ids,
        "prompt_length": len(prompt),
        "num_response_tokens": trajectory.num_response_tokens,
        "decode_order": [VISIBLE] * len(prompt) + trajectory.decode_order(),
        "index": index,
        "log_probs": [0.0] * len(prompt) + trajectory.log_probs,
        **_UNREWARDED,
        **reward,
    }


def training_rows(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Rows of trajectories for training, numbered in their order.

    >>> from t3d.core.trajectory import Trajectory
    >>> response = {"response_ids": [8, 9], "initial_ids": [0, 0], "step_map": [1, 0]}
    >>> rest = {"log_probs": [-0.2, -0.1], "num_response_tokens": 2, "finish_reason": "length"}
    >>> trajectory = Trajectory("p", [6, 7], **response, **rest, block_size=2, answer=None)
    >>> [row] = t3d.training_rows([trajectory])
    >>> row["input_ids"], row["decode_order"]
    ([6, 7, 8, 9], [-1, -1, 1, 0])
    """
    return [training_row(trajectory, index) for index, trajectory in enumerate(trajectories)]


def labelled_row(
    prompt_ids: list[int],
    response_ids: list[int],
    index: int,
    *,
    fill_id: int,
    mask_id: int,
    block_size: int,
) -> dict[str, Any]:
    """One row of labelled data, its last block filled up with `fill_id`; x_T is all `mask_id`.

    The filling takes loss, because a decoder fills the whole last block: a model that never
    learned what follows the stop token would commit noise there before the stop token itself.
    """
    end = BlockLayout(block_size).ceil(len(prompt_ids) + len(response_ids))
    response = response_ids + [fill_id] * (end - len(prompt_ids) - len(response_ids))
    return {
        "input_ids": prompt_ids + response,
        "initial_ids": prompt_ids + [mask_id] * len(response),
        "prompt_length": len(prompt_ids),
        "num_response_tokens": len(response),
        "decode_order": [VISIBLE] * len(prompt_ids) + list(range(len(response))),
        "index": index,
        "log_probs": [0.0] * end,
        **_UNREWARDED,
    }
