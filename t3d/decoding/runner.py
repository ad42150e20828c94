"""Forward passes over the cache: work in, logits of the masked positions out.

Letters in shapes: N tokens of a pass, B blocks, M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
from torch import Tensor

from t3d.decoding.attention import (
    Attend,
    Blocks,
    GroupedAttention,
    Span,
    VarlenAttention,
    takes_varlen,
)
from t3d.decoding.cache import SlotCache
from t3d.decoding.graphs import Shape, StaticPasses, can_capture, padded
from t3d.decoding.scheduler import Work
from t3d.decoding.transfer import Column, send
from t3d.decoding.view import ViewMaker, Wanted
from t3d.models.block_diffusion import BlockDiffusionLM

STORED_AT_ONCE = 64
"""Largest number of a sequence's tokens that are stored in one span, if a block is no larger: a
span's tokens all meet the slots of the last one."""


class Part(NamedTuple):
    """Blocks of one work that run in one span."""

    kind: tuple[int, int, int]
    """Parts that are equal in it attend together: their place in the work, width, block size."""
    row: int
    work: int
    """Number of the work."""
    blocks: list[tuple[int, int, Sequence[int]]]
    """First position, first slot and token ids of each block."""

    @classmethod
    def of(cls, number: int, work: Work) -> Iterator[Part]:
        """The states of a work, then what it stores."""
        sequence, size = work.sequence, work.sequence.config.block_size
        stored = range(work.first, sequence.start if work.states else work.stop, size)
        known = [(p, p, sequence.ids[p : p + size]) for p in stored]
        states = [
            (start, slot, ids)
            for slot, (start, ids) in zip(
                range(sequence.start, work.stop, size), work.blocks, strict=bool(work.states)
            )
        ]
        step = max(STORED_AT_ONCE // size, 1)
        parts = [states, *(known[i : i + step] for i in range(0, len(known), step))]
        for place, blocks in enumerate(parts):
            if blocks:
                yield cls((place, size * len(blocks), size), sequence.row, number, blocks)


class Runner:
    """Runs passes of a model over a cache that it holds."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        self.model = model
        self._make_view = ViewMaker(model)
        self._capture = can_capture(model.config)
        self.reset()

    def reset(self) -> None:
        """Drop the cache."""
        self._cache: SlotCache | None = None
        self._shape = (0, 0)
        self._static: StaticPasses | None = None

    def resize(self, num_rows: int, num_slots: int) -> None:
        """Resize the cache; rows and slots that stay keep their content."""
        if self._shape == (num_rows, num_slots):
            return
        self._shape = (num_rows, num_slots)
        # Graphs know the addresses of the cache.
        self._static = StaticPasses(self._forward_fast) if self._capture else None
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

    def run(self, works: list[Work], columns: Sequence[Column] = ()) -> tuple[Tensor, list[Tensor]]:
        """Run one forward pass.

        Args:
            columns: further numbers, which go to the device in the same copy, as `send` does it.

        Returns:
            Logits [M, V] of the masked positions, in order of works and positions, and the
            tensors of the columns.
        """
        parts = sorted(
            chain(*(Part.of(number, work) for number, work in enumerate(works))),
            key=lambda part: (part.kind, part.row),
        )
        blocks = [(part.row, *block) for part in parts for block in part.blocks]
        rows, starts, slots, ids = zip(*blocks, strict=True)
        first_token = dict[int, int]()
        num_denoised = 0
        for part in parts:
            if part.kind[0] == 0:
                first_token[part.work] = num_denoised
                num_denoised += part.kind[1]
        select: list[int] = []
        for number, work in enumerate(works):
            size = work.sequence.config.block_size
            # A finished block of a draft comes before the states.
            at = first_token.get(number, 0)
            at += work.stop - work.sequence.start - size * len(work.states)
            for state in work.states:
                select += [at + position - state.start for position in state.masked]
                at += size
        fast = takes_varlen(self.model.device, self.model.dtype) and starts == slots
        num_selected = len(select)
        if fast and self._static is not None:
            more = padded(len(rows)) - len(rows)
            rows, starts, ids = ((*own, *own[-1:] * more) for own in (rows, starts, ids))
            slots = starts
            select += [*select, 0][-1:] * (padded(max(num_selected, 1)) - num_selected)
        # What attention needs is computed here on the host, where a small operation costs least.
        blocks = Blocks(*map(np.array, (rows, starts, slots, [len(own) for own in ids])))
        own, place = blocks.spread()
        target = own.row * self._shape[1] + own.slot + place
        common = [[*chain(*ids)], own.start + place, target, select]
        if fast:
            table = VarlenAttention.table(blocks, num_slots=self._shape[1])
            shape = len(rows), len(place), len(select), max(map(len, ids))
            whole = np.concatenate([*common, table]).astype(np.int64)
            numbers, *rest = send(self.model.device, [whole, *columns])
            run = self._forward_fast if self._static is None else self._static
            return run(numbers, shape)[:num_selected], rest
        sent = send(self.model.device, [*common, *own, *columns])
        attend = self._grouped(sent[4:8], parts)
        return self._forward(sent[:4], attend, num_denoised), sent[8:]

    def _forward_fast(self, numbers: Tensor, shape: Shape) -> Tensor:
        """A pass of blocks that all follow their prefixes, from one tensor of all its numbers."""
        num, num_tokens, num_selected, largest = shape
        *common, table = numbers.split([num_tokens] * 3 + [num_selected, 3 * (num + 1)])
        attend = VarlenAttention(table, num_slots=self._shape[1], largest=largest)
        return self._forward(common, attend, num_tokens)

    def _grouped(self, own: list[Tensor], parts: list[Part]) -> Attend:
        spans = []
        for (_, width, size), alike in groupby(parts, key=lambda part: part.kind):
            together = list(alike)
            stop = max(slot for part in together for _, slot, _ in part.blocks) + size
            spans.append(Span([part.row for part in together], width, stop, width == size))
        shape = self.model.config
        heads_per_key = shape.num_attention_heads // shape.num_key_value_heads
        dtype = self.model.dtype
        return GroupedAttention(own, spans, heads_per_key=heads_per_key, dtype=dtype)

    def _forward(self, common: list[Tensor], attend: Attend, stop: int) -> Tensor:
        assert self._cache is not None
        token, position, self._cache.target, select = common
        return self._view(
            token[None],
            # An unused mask, but of four dimensions: transformers makes others causal itself.
            token.new_empty(1, 1, 1, 1),
            position[None],
            slots=self._cache,
            attend=attend,
            wanted=Wanted(select, stop),
        ).logits[0]
