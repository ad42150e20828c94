"""Key-value slots of a batch of sequences. The slot of a token is its absolute position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache


class SlotCache(Cache):
    """Keys and values of each layer, [num_rows, kv_heads, num_slots, D], allocated once.

    Before every forward pass `place` says where its tokens lie; the attention layers then
    call `update`. Writing to a slot again replaces it, so a block's provisional keys need no
    clean-up.
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
        shape = (num_rows, config.num_key_value_heads, num_slots, config.head_dim)
        layers = range(config.num_hidden_layers)
        # Zeros: a masked slot has weight 0, and 0 times an uninitialised NaN is NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

    def place(self, rows: list[int], position: Tensor, num_visible: int) -> None:
        """Where the tokens of the next pass lie.

        Args:
            rows: the cache row of each sequence of the pass, B of them.
            position: int64 [B, L].
            num_visible: the pass sees slots 0..num_visible-1.
        """
        index = torch.tensor(rows, device=position.device)
        self._target = (index[:, None], slice(None), position)
        # A full batch is read in place; otherwise its rows are copied out.
        self._rows = slice(0, len(rows)) if rows == list(range(len(rows))) else index
        self._num_visible = num_visible

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store [B, kv_heads, L, D]; return what the pass sees, [B, kv_heads, num_visible, D]."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self._target] = key_states.transpose(1, 2)
        values[self._target] = value_states.transpose(1, 2)
        visible = slice(0, self._num_visible)
        return keys[self._rows, :, visible], values[self._rows, :, visible]
