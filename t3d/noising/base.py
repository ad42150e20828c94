"""The interface of noisers, and the block-wise operations that they share.

The letter W in shapes is a batch's width L rounded up to whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from t3d.core.blocks import BlockLayout
from t3d.core.rng import fold
from t3d.core.trajectory import TrajectoryBatch

if TYPE_CHECKING:
    from t3d.models import LanguageModel

# The purposes that random numbers are drawn for; each has a stream of its own.
LEVEL, SUBSET, REPLACE, TOKEN, LATER, RANDOM_VIEW = range(6)


@dataclass(frozen=True)
class Vocabulary:
    """The facts about the tokenizer that a noiser needs."""

    size: int
    mask_token_id: int
    pad_token_id: int
    """Id of the token that upstream shows behind the stop token."""
    base_size: int
    """Number of ids, from 0, that are no added tokens; upstream draws its random tokens there."""
    banned: tuple[int, ...] = ()
    """Further token ids that are not drawn as noise."""

    @classmethod
    def of(cls, lm: LanguageModel) -> Vocabulary:
        ids = lm.mask_token_id, lm.pad_token_id
        return cls(lm.model.config.vocab_size, *ids, lm.tokenizer.vocab_size, lm.banned_token_ids)


@dataclass(frozen=True)
class View:
    """A noised copy of a batch."""

    xt: Tensor
    """The noised copy x_t, int64 [B, W]; mask tokens fill the last block up."""
    loss_mask: Tensor
    """Positions that take loss, bool [B, W]."""
    weight: Tensor
    """Weight by which the objective multiplies a token's loss, float32 [B, W]."""
    masked: Tensor
    """Positions where x_t hides x0, bool [B, W]; only path consistency has loss elsewhere."""


@dataclass(frozen=True)
class NoiserInput:
    """The input of a noiser, and the operations that noisers share."""

    batch: TrajectoryBatch
    layout: BlockLayout
    keys: Tensor
    """One key a sequence, int64 [B]."""
    vocabulary: Vocabulary
    progress: float
    """Share of the run's optimizer steps that are done, 0 to 1."""

    def to_blocks(self, values: Tensor, fill: int) -> Tensor:
        """Cut [B, L] into blocks, [B, N, S]; `fill` stands at the end of the last one."""
        width = self.layout.ceil(values.shape[1])
        padded = pad(values, (0, width - values.shape[1]), value=fill)
        return padded.view(len(values), -1, self.layout.block_size)

    @cached_property
    def response(self) -> Tensor:
        """Positions of the response, bool [B, N, S]."""
        return self.to_blocks(self.batch.response, 0)

    @cached_property
    def target(self) -> Tensor:
        """Response positions up to and including the stop token, bool [B, N, S]."""
        return self.to_blocks(self.batch.target, 0)

    def position_keys(self, width: int, purpose: int) -> Tensor:
        """Keys for each sequence and absolute position, [B, width]."""
        return fold(self.keys[:, None], purpose, torch.arange(width, device=self.keys.device))

    def fold(self, part: int) -> NoiserInput:
        """The same input with other keys."""
        return replace(self, keys=fold(self.keys, part))

    def view(self, masked: Tensor, loss: Tensor, weight: Tensor) -> View:
        """A view whose masked positions show x_T; all masks and weights are [B, N, S]."""
        batch, mask_id = self.batch, self.vocabulary.mask_token_id
        clean, initial = (
            self.to_blocks(ids, mask_id).flatten(1) for ids in (batch.input_ids, batch.initial_ids)
        )
        masked = masked.flatten(1)
        inside = torch.arange(clean.shape[1], device=clean.device) < batch.length[:, None]
        xt = torch.where(masked, initial, clean).masked_fill(~inside, mask_id)
        return View(xt, loss.flatten(1), weight.flatten(1), masked)


class Noiser(Protocol):
    """Function that makes views of a batch at a block size."""

    @property
    def num_views(self) -> int | None:
        """Number of views; None where it depends on the batch."""
        ...

    def __call__(self, given: NoiserInput) -> list[View]: ...
