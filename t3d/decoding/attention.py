"""Attention in a forward pass over sequences that are packed end to end, without padding.

All other layers treat the tokens of a pass alike, whichever sequence they belong to. Attention
runs group by group: sequences with equally many tokens form a batch, and each attends to its own
row of the cache.

Letters in shapes: N tokens of the pass, B sequences of a group, W tokens of each, T slots that
they see, H query heads, K key-value heads, G = H / K, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t3d.core.blocks import CLEAN, BlockLayout
from t3d.models.attention import dense_mask

FOLDED_WIDTH = 64
"""Largest number of a sequence's tokens for which query heads are folded into queries, which
repeats the mask once a head. Beyond it keys and values are repeated instead: they are smaller than
the mask."""


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences of a pass with equally many tokens, which attend as one batch."""

    rows: Tensor | slice
    """Rows of the cache that these sequences use; adjacent rows are read in place, others are
        copied first."""
    shape: tuple[int, int]
    """The pair (B, W): sequences, and tokens of each."""
    folds: int
    """Number of query heads that are folded into queries of their key-value head: G, or 1 for no
        folding."""
    mask: Tensor
    """Attention mask, bool [B, 1, folds * W, T], true where a query sees a key."""

    @classmethod
    def of(
        cls,
        rows: list[int],
        slot: Tensor,
        position: Tensor,
        stream: Tensor,
        num_visible: int,
        *,
        block_size: int,
        heads_per_key: int,
    ) -> Group:
        """The group of the sequences in `rows`, which run tokens [B, W] of positions and streams.

        They see slots 0..num_visible-1 under the mask of block diffusion. A slot holds the clean
        token of its position, but for those that this pass writes. All slots up to the start of
        its current block were written by the sequence itself; what earlier passes or a former user
        of the row left in later ones counts as clean tokens of later blocks, which nobody sees.
        """
        slots = torch.arange(num_visible, device=position.device).expand(len(rows), -1)
        clean = torch.full_like(slots, CLEAN)
        layout = BlockLayout(block_size)
        queries = layout.coordinates(position, stream)
        keys = layout.coordinates(slots.scatter(1, slot, position), clean.scatter(1, slot, stream))
        first = rows[0]
        adjacent = rows == list(range(first, first + len(rows)))
        own = slice(first, first + len(rows)) if adjacent else position.new_tensor(rows)
        num, width = position.shape
        folds = heads_per_key if width <= FOLDED_WIDTH else 1
        return cls(own, (num, width), folds, dense_mask(queries, keys).repeat(1, 1, folds, 1))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    groups: Sequence[Group],
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature that transformers calls.

    Args:
        module: unused.
        query: queries of all tokens, [1, H, N, D].
        key: keys of one layer of the cache, [rows, K, slots, D].
        value: values in the same shape.
        attention_mask: unused; each group has its own.
        scaling: factor of the attention scores.
        groups: groups in the order of the pass, which together hold all its tokens.

    Returns:
        The output [1, N, H, D], and None in place of attention weights.
    """
    sizes = [num * width for num, width in (group.shape for group in groups)]
    out = []
    for group, own in zip(groups, query[0].split(sizes, dim=1), strict=True):
        num_visible = group.mask.shape[-1]
        own = own.unflatten(1, group.shape).transpose(0, 1)  # [B, H, W, D]
        seen = [states[group.rows, :, :num_visible] for states in (key, value)]
        folded = own.unflatten(1, (-1, group.folds)).flatten(2, 3)  # [B, H / folds, folds * W, D]
        repeats = folded.shape[1] // key.shape[1]
        if repeats > 1:
            seen = [states.repeat_interleave(repeats, 1) for states in seen]
        mixed = F.scaled_dot_product_attention(
            folded,
            *seen,
            attn_mask=group.mask,
            scale=scaling,
        )
        out.append(mixed.reshape(own.shape).transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None
