"""Attention masks from coordinates: dense for sdpa, BlockMask for FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
    create = compiled_mask() if device.type == "cuda" else create_block_mask
    return create(mask_mod, batch, None, num_queries, keys.block.shape[1], device=str(device))


@cache
def compiled_mask() -> Callable[..., BlockMask]:
    """torch's `create_block_mask` as one kernel, which never holds the mask of all pairs.

    Created eagerly, a mask takes 11 to 13 bytes a pair of columns.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=True)


_PREFIX = "t3d_one_dtype_"


def in_one_dtype(implementation: str) -> str:
    """Name of the same attention with queries and keys cast to the values' dtype.

    Under autocast the norms of queries and keys return float32, since their weights are, and the
    projection of values bfloat16. FlexAttention refuses the mixture.
    """
    attend = ALL_ATTENTION_FUNCTIONS[implementation]

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
    ) -> Any:
        return attend(module, query.to(value.dtype), key.to(value.dtype), value, *args, **options)

    ALL_ATTENTION_FUNCTIONS.register(_PREFIX + implementation, forward)
    return _PREFIX + implementation


def attention_mask(
    implementation: str, queries: Coordinates, keys: Coordinates, dtype: torch.dtype
) -> Tensor | BlockMask:
    """The mask in the form that an attention implementation of transformers takes.

    Raises:
        ValueError: for an implementation that cannot take a block mask (flash attention).
    """
    implementation = implementation.removeprefix(_PREFIX)
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
