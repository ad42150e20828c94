"""Attention of a decoding pass: every block is a sequence that sees a prefix of its row and itself.

All other layers treat the tokens of a pass alike, whichever sequence they belong to. Once the keys
of all of them are written, a block that starts at position p sees slots 0..p-1 of its row, which
hold the clean tokens of earlier blocks, and its own slots. These follow the prefix, but for the
states that a verified pass runs beside the first one.

Letters in shapes: N tokens of the pass, B blocks, W tokens of a sequence in a group, R rows of the
cache, T slots, H query heads, K key-value heads, G = H / K, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Function of queries [N, H, D], keys and values [R, T, K, D] and the scale; returns [N, H, D]."""


class Blocks(NamedTuple):
    """The blocks of a pass, which lie end to end, or the block of each token; int64 arrays [B]."""

    row: NDArray[np.int64]
    """Rows of the cache."""
    start: NDArray[np.int64]
    """First positions, which are also the numbers of slots that the blocks see before their own."""
    slot: NDArray[np.int64]
    """First slots of their own."""
    size: NDArray[np.int64]
    """Numbers of tokens."""

    def spread(self) -> tuple[Blocks, NDArray[np.int64]]:
        """The block that each token belongs to, and the token's place in it; [N] each."""
        first = np.repeat(self.size.cumsum() - self.size, self.size)
        own = Blocks(*(np.repeat(column, self.size) for column in self))
        return own, np.arange(len(first)) - first


@dataclass(frozen=True)
class Span:
    """Neighbouring sequences of a pass with equally many tokens, in different rows."""

    rows: list[int]
    width: int
    """W, tokens of each."""
    stop: int
    """The slot after the last one that any of them sees."""
    is_block: bool
    """Whether each is one block, so that all its tokens see the same slots."""


class GroupedAttention:
    """Attention by `scaled_dot_product_attention`, one call for each span.

    Rows of the cache that lie side by side are read in place, others are copied first. Query heads
    are folded into the queries of their key-value head, so keys are not repeated.

    Args:
        own: of each token the row, start, slot and size of its block, int64 [N] each.
    """

    def __init__(
        self,
        own: Sequence[Tensor],
        spans: Sequence[Span],
        *,
        heads_per_key: int,
        dtype: torch.dtype,
    ) -> None:
        self._groups: list[tuple[Tensor | slice, tuple[int, int], Tensor]] = []
        offset = 0
        for span in spans:
            shape = len(span.rows), span.width
            tokens = slice(offset, offset := offset + shape[0] * shape[1])
            # All tokens of a block see the same slots, so one row of the mask serves them.
            alike = slice(1 if span.is_block else span.width)
            row, start, slot, size = (column[tokens].view(*shape, 1)[:, alike] for column in own)
            key = torch.arange(span.stop, device=start.device)
            seen = (key < start) | ((key >= slot) & (key < slot + size))
            # Numbers, because a boolean mask is turned into numbers again in every layer.
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            mask = mask.masked_fill_(~seen, -torch.inf)[:, None]
            if not span.is_block:
                mask = mask.repeat(1, 1, heads_per_key, 1)
            first = span.rows[0]
            rows: Tensor | slice = slice(first, first + shape[0])
            if span.rows != list(range(first, first + shape[0])):
                rows = row[:, 0, 0]
            self._groups.append((rows, shape, mask))

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """The output [N, H, D]; see `Attend`."""
        heads, out = keys.shape[2], []
        for rows, shape, mask in self._groups:
            # The last layer has queries of the spans with states alone, which come first.
            if not len(query):
                break
            num = shape[0] * shape[1]
            own, query = query[:num], query[num:]
            folded = own.unflatten(1, (heads, -1)).unflatten(0, shape).permute(0, 2, 3, 1, 4)
            seen = [states[:, : mask.shape[-1]].transpose(1, 2) for states in (keys, values)]
            # Neighbours in place; others are copied by `index_select`, which beats indexing.
            seen = [s[rows] if isinstance(rows, slice) else s.index_select(0, rows) for s in seen]
            mixed = F.scaled_dot_product_attention(
                folded.flatten(2, 3), *seen, attn_mask=mask, scale=scale
            )  # [B, K, G * W, D]
            mixed = mixed.unflatten(2, (-1, shape[1])).permute(0, 3, 1, 2, 4)
            out.append(mixed.reshape(own.shape))
        return out[0] if len(out) == 1 else torch.cat(out)


class VarlenAttention:
    """Attention by one call of FlashAttention, `torch.nn.attention.varlen.varlen_attn`.

    Keys are read in place, by the first slot of each block's row and the number of slots that the
    block sees, so there is neither mask nor padding, and several blocks may share a row. All blocks
    follow their prefixes.

    Args:
        table: what `table` returns, on the device.
        num_slots: slots of a row of the cache.
        largest: tokens of the largest block.
    """

    def __init__(self, table: Tensor, *, num_slots: int, largest: int) -> None:
        self._first_query, self._first_key, num_seen = table.int().view(3, -1).unbind()
        self._num_seen = num_seen[1:]
        self._largest = largest, num_slots

    @staticmethod
    def table(blocks: Blocks, *, num_slots: int) -> NDArray[np.int64]:
        """First query, first key and number of keys of B blocks, int64 [3 * (B + 1)]."""
        none = np.zeros(1, dtype=np.int64)
        parts = [none, blocks.size.cumsum(), blocks.row * num_slots, none, none]
        return np.concatenate([*parts, blocks.start + blocks.size])

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """The output [N, H, D]; see `Attend`."""
        varlen_attn = find_varlen()
        assert varlen_attn is not None
        return varlen_attn(
            query,
            keys.flatten(0, 1),
            values.flatten(0, 1),
            self._first_query,
            self._first_key,
            *self._largest,
            scale=scale,
            enable_gqa=True,
            seqused_k=self._num_seen,
        )


@cache
def find_varlen() -> Callable[..., Any] | None:
    """PyTorch's `varlen_attn`; None in a release where it cannot leave out keys."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "seqused_k" in inspect.signature(varlen_attn).parameters else None


def takes_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether FlashAttention runs there: on CUDA, in half precision."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and find_varlen() is not None
