"""The clean-noised forward pass [x0 || x_t]: one pass predicts every loss token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from t3d.core.blocks import CLEAN, PADDING, BlockLayout, Coordinates, pack
from t3d.core.trajectory import TrajectoryBatch
from t3d.models.attention import attention_mask, in_one_dtype
from t3d.noising import View
from t3d.objectives import LossTokens
from t3d.training.config import Attention

FLEX_WIDTH = 1 << 14
"""Largest number of columns of a row under flex_attention, which skips masked blocks, unless one
sequence alone is longer."""


@dataclass(frozen=True)
class ModelInputs:
    """Arguments of `BlockDiffusionLM.forward`: R rows of T columns hold the batch's sequences."""

    input_ids: Tensor
    """Token ids of the packed rows, int64 [R, T]."""
    position_ids: Tensor
    """Absolute position of each column, int64 [R, T]."""
    attention_mask: object
    select: Tensor
    """Columns of the loss tokens, counted over the flattened rows, int64 [M]."""


def assemble(
    batch: TrajectoryBatch,
    views: list[View],
    layout: BlockLayout,
    attn_implementation: str,
    dtype: torch.dtype,
) -> tuple[ModelInputs, LossTokens]:
    """Lay clean and noised copies out side by side; the model's inputs and the loss tokens."""
    grid = layout.training(batch.prompt_length, batch.length, len(views))
    clean_width = layout.ceil(int(batch.length.max())) - layout.block_size
    width = (grid.position.shape[1] - clean_width) // len(views)
    clean = batch.input_ids[:, :clean_width]
    ids, select, weight = [clean], [torch.zeros_like(clean, dtype=torch.bool)], []
    weight.append(torch.zeros(clean.shape, device=clean.device))
    masked = [select[0]]
    for number, view in enumerate(views):
        columns = slice(clean_width + number * width, clean_width + (number + 1) * width)
        position = grid.position[:, columns]
        ids.append(view.xt.gather(1, position))
        select.append(view.loss_mask.gather(1, position) & grid.noised[:, columns])
        weight.append(view.weight.gather(1, position))
        masked.append(view.masked.gather(1, position))
    chosen = torch.cat(select, 1)
    sequence, column = chosen.nonzero(as_tuple=True)
    position = grid.position[sequence, column]
    grid = _with_loss(grid, chosen)
    tokens = LossTokens(
        target=batch.input_ids[sequence, position],
        sequence=sequence,
        view=grid.stream[sequence, column] - CLEAN - 1,
        position=position,
        block=grid.block[sequence, column],
        weight=torch.cat(weight, 1)[sequence, column],
        masked=torch.cat(masked, 1)[sequence, column],
        num_sequences=len(clean),
        num_views=len(views),
        num_response_tokens=batch.num_response_tokens,
    )
    packed, source = pack(grid, _row_width(grid, attn_implementation))
    # The column in the packed rows of every column of the grid.
    place = torch.empty_like(grid.position).flatten()
    kept = (packed.stream != PADDING).flatten().nonzero()[:, 0]
    place[source.flatten()[kept]] = kept
    inputs = ModelInputs(
        input_ids=torch.cat(ids, 1).flatten()[source],
        position_ids=packed.position,
        attention_mask=attention_mask(attn_implementation, packed, packed, dtype),
        select=place[sequence * grid.position.shape[1] + column],
    )
    return inputs, tokens


def _with_loss(grid: Coordinates, chosen: Tensor) -> Coordinates:
    """The layout without the noised blocks that hold no loss token; nothing else sees them.

    Args:
        chosen: the columns of the loss tokens, bool [B, T].
    """
    num_blocks = int(grid.block.max()) + 1
    cell = grid.stream.clamp(min=CLEAN) * num_blocks + grid.block
    num_chosen = chosen.new_zeros((len(cell), int(cell.max()) + 1), dtype=torch.int64)
    num_chosen.scatter_add_(1, cell, chosen.long())
    # A model takes no batch of nothing: one without any loss token stays as it is.
    idle = grid.noised & (num_chosen.gather(1, cell) == 0) & chosen.any()
    return replace(grid, stream=torch.where(idle, PADDING, grid.stream))


def _row_width(grid: Coordinates, attn_implementation: str) -> int:
    """Width of a packed row: that of the longest sequence, or more where masked blocks are skipped.

    Dense attention costs the square of the width. On a CPU, at the lengths of GSM8K, rows as wide
    as the longest sequence take a fifth less time than padded sequences, and rows twice as wide
    take more time than padded ones.
    """
    longest = int((grid.stream != PADDING).sum(1).max())
    return max(longest, FLEX_WIDTH) if attn_implementation.endswith("flex_attention") else longest


@contextmanager
def attending(models: Sequence[PreTrainedModel], attention: Attention) -> Iterator[None]:
    """Context in which the models use another implementation of attention."""
    if attention == "auto":
        on_gpu = models[0].device.type == "cuda"
        attention = "flex_attention" if on_gpu else "sdpa"
    before = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation(in_one_dtype(attention))
    try:
        yield
    finally:
        for model, own in zip(models, before, strict=True):
            assert own is not None
            model.set_attn_implementation(own)
