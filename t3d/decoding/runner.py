"""Forward passes over the cache: work in, logits of the masked positions out.

Letters in shapes: B sequences of a pass, W its width, T slots that it sees, M masked positions,
V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t3d.blocks import CLEAN, Coordinates
from t3d.decoding.cache import SlotCache
from t3d.decoding.scheduler import Work
from t3d.models.attention import attention_mask
from t3d.models.block_diffusion import BlockDiffusionLM


class Runner:
    """Runs passes of a model over a cache that it holds."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Drop the cache."""
        self._cache: SlotCache | None = None
        self._shape = (0, 0)

    def resize(self, num_rows: int, num_slots: int) -> None:
        """Make the cache fit; what it holds is kept as far as it fits."""
        if self._shape == (num_rows, num_slots):
            return
        self._shape = (num_rows, num_slots)
        if self._cache is not None:
            self._cache.resize(num_rows, num_slots)
        else:
            self._cache = SlotCache(
                self.model.config,
                num_rows,
                num_slots,
                dtype=self.model.dtype,
                device=self.model.device,
            )

    def move(self, source: int, target: int) -> None:
        """Copy a row of the cache to another one."""
        assert self._cache is not None
        self._cache.move(source, target)

    def run(self, works: list[Work]) -> Tensor:
        """One pass. Logits [M, V] of the masked positions, in order of works and positions."""
        assert self._cache is not None
        implementation = self.model.config._attn_implementation
        assert implementation is not None
        device = self.model.device
        width = max(work.width for work in works)
        ids, select = [], []
        for work in works:
            sequence, padding = work.sequence, width - work.width
            ids.append(sequence.ids[work.first : work.stop] + [0] * padding)
            chosen = [False] * width
            if work.denoises:
                for masked in sequence.masked:
                    chosen[masked - work.first] = True
            select.append(chosen)
        first = torch.tensor([work.first for work in works], device=device)[:, None]
        position = first + torch.arange(width, device=device)  # [B, W]
        valid = None
        if any(work.width < width for work in works):
            last = torch.tensor([work.stop - 1 for work in works], device=device)[:, None]
            valid = position <= last
            # Padding sees what the last token sees, and lies within the model's positions.
            position = torch.minimum(position, last)
        num_visible = max(work.stop for work in works)
        self._cache.place([work.sequence.row for work in works], position, num_visible, valid)
        # Each sequence lies on the grid of its own block size. What a slot of its own or an
        # earlier block holds it wrote itself: leftovers of others lie later, out of sight.
        sizes = [work.sequence.config.block_size for work in works]
        size = sizes[0] if len(set(sizes)) == 1 else torch.tensor(sizes, device=device)[:, None]
        slots = torch.arange(num_visible, device=device).expand(len(works), -1)  # [B, T]
        stream = torch.full((1, 1), CLEAN, device=device)
        queries, keys = (Coordinates(p, p // size, stream.expand_as(p)) for p in (position, slots))
        mask = attention_mask(implementation, queries, keys, self.model.dtype)
        return self.model(
            torch.tensor(ids, device=device),
            mask,
            position,
            past_key_values=self._cache,
            select=torch.tensor(select, device=device),
        ).logits
