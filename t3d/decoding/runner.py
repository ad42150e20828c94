"""Forward passes over the cache: work in, logits of the masked positions out.

Letters in shapes: N tokens of a pass, M masked positions, V vocabulary.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from t3d.core.blocks import CLEAN
from t3d.decoding.attention import Group
from t3d.decoding.cache import SlotCache
from t3d.decoding.scheduler import Work
from t3d.decoding.view import ViewMaker
from t3d.models.block_diffusion import BlockDiffusionLM


class Runner:
    """Runs passes of a model over a cache that it holds."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        self.model = model
        self._make_view = ViewMaker(model)
        self.reset()

    def reset(self) -> None:
        """Drop the cache."""
        self._cache: SlotCache | None = None
        self._shape = (0, 0)

    def resize(self, num_rows: int, num_slots: int) -> None:
        """Resize the cache; rows and slots that stay keep their content."""
        if self._shape == (num_rows, num_slots):
            return
        self._shape = (num_rows, num_slots)
        if self._cache is not None:
            self._cache.resize(num_rows, num_slots)
        else:
            self._view = self._make_view()
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
        """Run one forward pass of works that are sorted by `Work.kind`.

        Returns:
            Logits [M, V] of the masked positions, in order of works and positions.
        """
        assert self._cache is not None
        device = self.model.device
        ids: list[int] = []
        rows: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        streams: list[int] = []
        select: list[int] = []
        for work in works:
            sequence, size = work.sequence, work.sequence.config.block_size
            known = range(work.first, sequence.start if work.states else work.stop)
            ids += sequence.ids[known.start : known.stop]
            positions += known
            streams += [CLEAN] * len(known)
            for stream, (start, block) in enumerate(work.blocks):
                ids += block
                positions += range(start, start + size)
                streams += [stream] * size
            rows += [sequence.row] * work.width
            slots += range(work.first, work.stop)
            at = len(ids) - size * len(work.states)
            for state in work.states:
                select += [at + masked - state.start for masked in state.masked]
                at += size
        columns = torch.tensor([ids, rows, slots, positions, streams], device=device)
        token, row, slot, position, stream = columns[:, None]
        self._cache.place(row, slot)
        groups, start, shape = [], 0, self.model.config
        for (width, block_size), own in groupby(works, key=lambda work: work.kind):
            together = list(own)
            stop = start + width * len(together)
            groups.append(
                Group.of(
                    [work.sequence.row for work in together],
                    slot[0, start:stop].view(-1, width),
                    position[0, start:stop].view(-1, width),
                    stream[0, start:stop].view(-1, width),
                    max(work.stop for work in together),
                    block_size=block_size,
                    heads_per_key=shape.num_attention_heads // shape.num_key_value_heads,
                )
            )
            start = stop
        return self._view(
            token,
            # An unused mask, but of four dimensions: transformers makes others causal itself.
            token.new_empty(1, 1, 1, 1),
            position,
            self._cache,
            select=torch.tensor(select, dtype=torch.int64, device=device),
            groups=groups,
        ).logits
