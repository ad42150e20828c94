"""Forward passes over the cache: work in, logits of the masked positions out.

Letters in shapes: N tokens of a pass, B blocks, M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t3d.decoding.ahead import KNOWN, Outcome
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
    """Blocks of one work that run in one span; parts are sorted by kind and row."""

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
        stored = range(work.first, work.stored, size)
        known = [(p, p, sequence.ids[p : p + size]) for p in stored]
        slots = range(work.stored, work.stop, size)
        states = [(start, slot, ids) for slot, (start, ids) in zip(slots, work.blocks, strict=True)]
        step = max(STORED_AT_ONCE // size, 1)
        parts = [states, *(known[i : i + step] for i in range(0, len(known), step))]
        for place, blocks in enumerate(parts):
            if blocks:
                yield cls((place, size * len(blocks), size), sequence.row, number, blocks)


class Pass(NamedTuple):
    """A pass that is launched."""

    logits: Tensor
    """Logits [M, V] of the masked positions, in order of works and positions."""
    columns: list[Tensor]
    """The columns on the device."""
    kept: Tensor | None
    """Which of the positions that may be masked are so, int64 [M]; None where the host knows."""
    ids: Tensor
    """Token ids, int64 [N]."""
    select: Tensor
    """Numbers of the masked tokens, int64 [M]."""
    first_token: dict[int, int]
    """Number of the first token of each work's states."""


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
        self._view = self._make_view(num_slots)
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

    def run(
        self, works: list[Work], columns: Sequence[Column] = (), before: Outcome | None = None
    ) -> Pass:
        """Launch one forward pass.

        Args:
            columns: further numbers, which go to the device in the same copy, as `send` does it.
            before: outcome of the pass before, if the host has not read it.
        """
        parts = sorted(chain(*(Part.of(number, work) for number, work in enumerate(works))))
        blocks = [(part.row, *block) for part in parts for block in part.blocks]
        rows, starts, slots, ids = zip(*blocks, strict=True)
        first_token = dict[int, int]()
        num_denoised = 0
        for part in parts:
            if part.kind[0] == 0:
                first_token[part.work] = num_denoised
                num_denoised += part.kind[1]
        select: list[int] = []
        num_masked = 0
        for number, work in enumerate(works):
            size = work.sequence.config.block_size
            # A finished block of a draft comes before the states.
            at = first_token.get(number, 0)
            at += work.stop - work.stored - size * len(work.states)
            for state in work.states:
                select += [at + position - state.start for position in state.masked]
                num_masked += state.num_masked
                at += size
        fast = takes_varlen(self.model.device, self.model.dtype) and starts == slots
        # At least one, since experts may not take a layer without tokens.
        more, num_selected = 0, max(num_masked, 1)
        if fast and self._static is not None:
            more = padded(len(rows)) - len(rows)
            rows, starts, ids = ((*own, *own[-1:] * more) for own in (rows, starts, ids))
            slots = starts
            num_selected = padded(num_selected)
        select += [0] * (num_selected - num_masked)
        # What attention needs is computed here on the host, where a small operation costs least.
        blocks = Blocks(*map(np.array, (rows, starts, slots, [len(own) for own in ids])))
        own, place = blocks.spread()
        target = own.row * self._shape[1] + own.slot + place
        common = [[*chain(*ids)], own.start + place, target, select]
        table = [VarlenAttention.table(blocks, num_slots=self._shape[1])] if fast else [*own]
        unread: list[list[int]] = []
        if before is not None:
            doubtful = _doubtful(works) + [KNOWN] * (num_selected - num_masked)
            unread = [_sources(works, parts, more, len(before.ids)), doubtful]
        sent = send(self.model.device, [*common, *table, *unread, *columns])
        common, table, rest = sent[:4], sent[4 : 4 + len(table)], sent[4 + len(table) :]
        kept = None
        if before is not None:
            source, unsure, *rest = rest
            kept = before.still_masked(unsure, num_selected)
            common = [before.fill(common[0], source), *common[1:3], common[3][kept]]
            kept = kept[:num_masked]
        if fast:
            shape = len(rows), len(place), num_selected, max(map(len, ids))
            run = self._forward_fast if self._static is None else self._static
            logits = run(torch.cat([*common, *table]), shape)
        else:
            attend = self._grouped(table, parts)
            logits = self._forward(common, attend, num_denoised or len(place))
        return Pass(logits[:num_masked], rest, kept, common[0], common[3][:num_masked], first_token)

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


def _doubtful(works: list[Work]) -> list[int]:
    """For every position that the host takes for masked: its token in the pass before, if that may
    have decoded it, else `KNOWN`."""
    return [
        work.sequence.unread_token + position - state.start if state.num_unread else KNOWN
        for work in works
        for state in work.states
        for position in state.masked
    ]


def _sources(works: list[Work], parts: list[Part], more: int, num_before: int) -> list[int]:
    """Where the ids of the tokens are: by number of a token in the pass before, `num_before` of
    them, and of this one; the last block is there `more` times again."""
    sources: list[int] = []
    for part in parts:
        sequence = works[part.work].sequence
        for start, _, ids in part.blocks:
            is_unread = sequence.unread_token >= 0 and start == sequence.start
            first = sequence.unread_token if is_unread else num_before + len(sources)
            sources += range(first, first + len(ids))
    last = len(parts[-1].blocks[-1][2])
    return sources + sources[-last:] * more
