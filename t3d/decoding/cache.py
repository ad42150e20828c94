"""Key-value slots of a batch of sequences. The slot of a token is its absolute position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache


class SlotCache(Cache):
    """Keys and values of each layer, [num_rows, num_slots, 2, kv_heads, D], allocated once.

    Before every forward pass `place`, or the runner by `target`, sets the rows and slots of its
    tokens. Attention then calls `write`, or `update` in the library's modules, which writes these
    and returns all slots of all rows. A slot can be written again, so the keys of a block that is
    not finished need no clean-up.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        num_rows: int,
        num_slots: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(layers=[])
        self._heads = (config.num_key_value_heads, config.head_dim)
        self._options = {"dtype": dtype, "device": device}
        layers = range(config.num_hidden_layers)
        self.num_slots = num_slots
        self.target = torch.empty(0, dtype=torch.int64, device=device)
        """Slots of the next pass's tokens, counted through all rows, int64 [N]."""
        self.states = [self._empty(num_rows, num_slots) for _ in layers]

    def _empty(self, num_rows: int, num_slots: int) -> Tensor:
        # Zeros, because a masked slot has attention weight 0, and 0 times a stray NaN is NaN.
        return torch.zeros((num_rows, num_slots, 2, *self._heads), **self._options)

    def resize(self, num_rows: int, num_slots: int) -> None:
        """Change the numbers of rows and slots; those that stay keep their content."""
        self.num_slots = num_slots
        for layer, old in enumerate(self.states):
            # One layer at a time, so that old and new cache never exist as a whole at once.
            self.states[layer] = self._empty(num_rows, num_slots)
            kept = old[:num_rows, :num_slots]
            self.states[layer][: kept.shape[0], : kept.shape[1]] = kept

    def move(self, source: int, target: int) -> None:
        """Copy a row to another one."""
        for layer in self.states:
            layer[target] = layer[source]

    def place(self, row: Tensor, slot: Tensor) -> None:
        """Set rows and slots of the next pass's tokens; int64 [B, L], or broadcastable to it."""
        self.target = (row * self.num_slots + slot).flatten()

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store [B, kv_heads, L, D]; return the whole layer, [num_rows, kv_heads, num_slots, D]."""
        both = torch.stack([key_states, value_states], 1)  # [B, 2, kv_heads, L, D]
        keys, values = self.write(both.permute(0, 3, 1, 2, 4).flatten(0, 1), layer_idx)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def write(self, states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store [N, 2, kv_heads, D] of the N tokens that have their places.

        Returns:
            Keys and values of all slots, [num_rows, num_slots, kv_heads, D] each.
        """
        own = self.states[layer]
        own.flatten(0, 1).index_copy_(0, self.target, states)
        return own[:, :, 0], own[:, :, 1]
