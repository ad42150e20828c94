"""Scheduling without tensors: which sequences run, in which cache rows, and what each does next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from t3d.core.blocks import BlockLayout
from t3d.decoding.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Work:
    """The part of one sequence in a forward pass: it writes its cache slots first..stop-1.

    A slot before the current block is a position. From there on come the blocks that `blocks` names
    end to end, all but one of them in slots that later blocks will overwrite.
    """

    sequence: Sequence
    first: int
    stop: int
    states: tuple[State, ...] = ()
    """States that take a denoising step; without any, the positions are only stored."""

    @property
    def blocks(self) -> list[tuple[int, tuple[int, ...]]]:
        """First position and token ids of the drafted block, where it is finished, and of the
        states. The first of them is clean to those that follow: a state of the next block sees it.
        """
        block = self.sequence.draft.block if self.states else None
        finished = [] if block is None else [(self.sequence.start, block)]
        return finished + [(state.start, state.ids) for state in self.states]

    @property
    def width(self) -> int:
        return self.stop - self.first

    @property
    def stored(self) -> int:
        """The slot after those of positions that are only stored."""
        return self.states[0].start if self.states else self.stop


@dataclass(kw_only=True)
class Scheduler:
    """Admits sequences in order of arrival into rows of the cache, and plans their passes.

    Args:
        batch_size: sequences that run at the same time at most.
        fused: whether a finished block is stored by the next block's first step, and the prompt
            by the first block's. Otherwise each takes a pass of its own.
        prefill_chunk: prompt tokens of one round of passes at most, at least one block.
        cache_tokens: rows times slots of the cache at most; None for no bound.
    """

    batch_size: int
    fused: bool
    prefill_chunk: int
    cache_tokens: int | None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every sequence."""
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """Sequences that run, by their row of the cache."""
        self.num_rows = 0
        """Number of rows that the cache must have."""
        self.num_slots = 0
        """Number of slots that each row must have."""

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ValueError: if it fits no cache of the size allowed.
        """
        if self._exceeds(1, sequence.num_slots):
            raise ValueError(
                f"request {sequence.id}: its {sequence.prompt_length} prompt tokens and "
                f"{len(sequence.ids) - sequence.prompt_length} response tokens in whole blocks "
                f"take {sequence.num_slots} cache slots with draft_states="
                f"{sequence.config.draft_states}, more than the cache's {self.cache_tokens}; raise "
                "cache_tokens (or memory_share), or lower max_new_tokens or draft_states"
            )
        self.waiting.append(sequence)

    def _exceeds(self, num_rows: int, num_slots: int) -> bool:
        return self.cache_tokens is not None and num_rows * num_slots > self.cache_tokens

    def admit(self) -> None:
        """Let waiting sequences in while there is room; sets `num_rows` and `num_slots`."""
        longest = max((s.num_slots for s in self.running), default=0)
        while self.waiting and len(self.running) < self.batch_size:
            needed = max(longest, self.waiting[0].num_slots)
            if self._exceeds(len(self.running) + 1, needed):
                break
            sequence = self.waiting.popleft()
            sequence.row = len(self.running)
            self.running.append(sequence)
            longest = needed
        if len(self.running) <= self.num_rows and longest <= self.num_slots:
            return
        if self.cache_tokens is not None:
            self.num_rows = min(self.batch_size, self.cache_tokens // longest)
            self.num_slots = longest
        else:
            # Growing copies the cache, so it makes room for all known sequences at once, and at
            # least doubles.
            num = max(len(self.running) + len(self.waiting), 2 * self.num_rows)
            self.num_rows = min(self.batch_size, num)
            self.num_slots = max(self.num_slots, longest, *(s.num_slots for s in self.waiting), 0)

    def release(self, sequence: Sequence) -> int | None:
        """Free the row of a sequence, and move the last row there, so that rows stay adjacent.

        Returns:
            The row that moved, or None.
        """
        last = self.running.pop()
        if last is sequence:
            return None
        source, last.row = last.row, sequence.row
        self.running[last.row] = last
        return source

    @property
    def can_go_ahead(self) -> bool:
        """Whether the next pass can be planned before the last one is read: all that run have one
        setting whose `counts_are_known`, and none reports alternatives."""
        if not self.running:
            return True
        config = self.running[0].config
        return config.counts_are_known and all(
            # Comparing two settings takes long, and most requests share one object.
            (s.config is config or s.config == config) and not s.request.num_alternatives
            for s in self.running
        )

    def next_pass(self) -> list[Work]:
        """The next pass: the work of every running sequence, by row."""
        budget, late = self.prefill_chunk, set[int]()
        prefilling = [s for s in self.running if s.num_cached < s.prefix]
        for i, sequence in enumerate(sorted(prefilling, key=lambda s: s.id)):
            budget -= self._chunk_end(sequence) - sequence.num_cached
            if i > 0 and budget < 0:
                late.add(sequence.id)
        works = (self._work(s) for s in self.running if s.id not in late)
        return [work for work in works if work is not None]

    def _chunk_end(self, sequence: Sequence) -> int:
        """Where the next chunk of a prompt ends; independent of all other sequences."""
        size = sequence.config.block_size
        chunk = max(BlockLayout(size).floor(self.prefill_chunk), size)
        return min(sequence.num_cached + chunk, sequence.prefix)

    def _work(self, sequence: Sequence) -> Work | None:
        """The next work of a sequence; None if its last pass runs already."""
        if sequence.unread_token >= 0:
            state = sequence.next_state
            if state is None:
                return None
            stop = state.start + sequence.config.block_size
            return Work(sequence, sequence.start, stop, (state,))
        first, stop = sequence.num_cached, sequence.start
        if first < sequence.prefix:
            stop = self._chunk_end(sequence)
        if stop < sequence.start or not (self.fused or first == stop):
            return Work(sequence, first, stop)
        states = sequence.states
        num = len(states) + (sequence.draft.block is not None)
        return Work(sequence, first, stop + num * sequence.config.block_size, states)
