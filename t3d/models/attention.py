"""Attention masks from coordinates: dense for sdpa, BlockMask for FlexAttention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from t3d.core.blocks import Coordinates, may_attend

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def dense_mask(queries: Coordinates, keys: Coordinates) -> Tensor:
    """Bool [B, 1, Q, K], true where a query sees a key."""
    return may_attend(queries[:, :, None], keys[:, None])[:, None]


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers that are added to scores; `eager` attention adds even boolean masks."""
    floor = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, floor)


def flex_mask(queries: Coordinates, keys: Coordinates) -> BlockMask:
    """The same rule as a BlockMask for `attn_implementation="flex_attention"`."""
    from torch.nn.attention.flex_attention import create_block_mask

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return may_attend(queries[b, q], keys[b, k])

    batch, num_queries = queries.block.shape
    device = queries.block.device
    return create_block_mask(
        mask_mod, batch, None, num_queries, keys.block.shape[1], device=str(device)
    )


def attention_mask(
    implementation: str, queries: Coordinates, keys: Coordinates, dtype: torch.dtype
) -> Tensor | BlockMask:
    """The mask in the form that an attention implementation of transformers takes.

    Raises:
        ValueError: for an implementation that cannot take a block mask (flash attention).
    """
    if implementation == "flex_attention":
        return flex_mask(queries, keys)
    if implementation == "sdpa":
        return dense_mask(queries, keys)
    if implementation == "eager":
        return additive_mask(dense_mask(queries, keys), dtype)
    raise ValueError(
        f"attn_implementation {implementation!r} cannot take a block mask; "
        "use 'sdpa', 'flex_attention' or 'eager'"
    )
