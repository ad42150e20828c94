"""State of one request being decoded, without tensors: what is committed, stored and next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import FinishReason
from t3d.decoding.config import DecodingConfig
from t3d.decoding.remasking import scheduled
from t3d.decoding.request import Completion, Passes, Request


class State(NamedTuple):
    """A denoising state of one block, committed or drafted: the input of a step."""

    seed: int
    """Key of the request's random numbers."""
    start: int
    """First position of the block."""
    ids: tuple[int, ...]
    """Token ids of the block that the model sees."""
    masked: tuple[int, ...]
    """Positions of the current window that are still to be decoded, ascending."""
    step: int
    """Number of denoising steps of the block so far."""
    first_step: int
    """Denoising step of the block with which the current window began."""
    num_unread: int = 0
    """Number of `masked` positions that the pass before commits, if it is not read. The host does
    not know which; `masked` and `ids` still show them as masked."""

    @property
    def num_masked(self) -> int:
        """Number of positions whose logits are wanted."""
        return len(self.masked) - self.num_unread

    def after(self, chosen: Iterable[tuple[int, int]], num_steps: int = 1) -> State:
        """The state that follows when these steps commit (position, token)."""
        ids, positions = list(self.ids), set[int]()
        for position, token in chosen:
            ids[position - self.start] = token
            positions.add(position)
        masked = tuple(p for p in self.masked if p not in positions)
        return self._replace(ids=tuple(ids), masked=masked, step=self.step + num_steps)


@dataclass(frozen=True)
class Draft:
    """What a pass is to verify beside the state that a block is in."""

    states: tuple[State, ...] = ()
    """States that the next steps may lead to."""
    block: tuple[int, ...] | None = None
    """The finished block, where the draft reaches its end."""


@dataclass(eq=False)
class Sequence:
    """State of one request; its lists cover the prompt and all blocks that are to be filled.

    `start` is the first position of the current block.
    """

    id: int
    request: Request
    config: DecodingConfig
    ids: list[int]
    """Token ids that the model sees: the committed token, or x_T until there is one."""
    mask_token_id: int
    row: int = -1
    """Row of the cache, once the sequence is admitted."""
    num_cached: int = 0
    """Number of positions whose final keys and values are stored; whole blocks."""
    step: int = 0
    """Number of denoising steps of the current block so far."""
    first_step: int = 0
    """Denoising step of the block with which the current window began."""
    num_prefills: int = 0
    num_denoising: int = 0
    num_commits: int = 0
    num_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_drafts: int = 0
    num_draft_cached: int = 0
    """`num_cached` of the model that drafts, if it is another one."""
    draft: Draft = Draft()
    unread_token: int = -1
    """Number of its current block's first token in the pass that is launched and not read; -1 if
    there is none."""
    start: int = field(init=False)
    masked: list[int] = field(init=False)
    """Positions of the current window that are still to be decoded, ascending."""

    def __post_init__(self) -> None:
        self.prompt_length = len(self.request.prompt_ids)
        self.limit = self.prompt_length + self.request.num_new(self.config)
        self.initial_ids = self.ids[self.prompt_length :]
        self.step_map = [-1] * len(self.ids)
        self.log_probs = [0.0] * len(self.ids)
        layout = BlockLayout(self.config.block_size)
        self.start = self.prefix = layout.floor(self.prompt_length)
        # Windows divide blocks, so they form a finer grid.
        self._enter(BlockLayout(self.config.window_size).floor(self.prompt_length))
        self._num_searched = self.prompt_length

    def _enter(self, window: int) -> None:
        self.window_end = window + self.config.window_size
        self.masked = list(range(max(window, self.prompt_length), self.window_end))
        self.first_step = self.step

    @property
    def end(self) -> int:
        """The position after the current block."""
        return self.start + self.config.block_size

    @property
    def num_slots(self) -> int:
        """Number of cache slots that its passes write; states beside the first need their own."""
        num = self.config.most_states
        return len(self.ids) + (num * self.config.block_size if num > 1 else 0)

    @property
    def state(self) -> State:
        """The state that the current block is in."""
        return State(
            self.request.seed,
            self.start,
            tuple(self.ids[self.start : self.end]),
            tuple(self.masked),
            self.step,
            self.first_step,
        )

    @property
    def next_state(self) -> State | None:
        """The state after the pass that runs now, as far as the host knows it; None if that pass
        ends the response."""
        state, config = self.state, self.config
        num = int(scheduled(config, self.step - self.first_step, len(self.masked)))
        if num < len(self.masked):
            return state._replace(step=self.step + 1, num_unread=num)
        if self.window_end == len(self.ids):
            return None
        if self.window_end == self.end:
            return self._next_block
        masked = tuple(range(self.window_end, self.window_end + config.window_size))
        return state._replace(masked=masked, step=self.step + 1, first_step=self.step + 1)

    @property
    def _next_block(self) -> State:
        """The first state of the next block."""
        ids = tuple(self.ids[self.end : self.end + self.config.block_size])
        masked = tuple(range(self.end, self.end + self.config.window_size))
        return State(self.request.seed, self.end, ids, masked, 0, 0)

    @property
    def states(self) -> tuple[State, ...]:
        """The states of the next pass: the current one, the draft's, and the next block's first."""
        states = (self.state, *self.draft.states)
        if self.draft.block is None or self.end == len(self.ids):
            return states
        return *states, self._next_block

    def store(self, stop: int, num_tokens: int) -> None:
        """Note that a pass stored the positions before `stop` and did nothing else."""
        self.num_tokens += num_tokens
        if stop > self.prefix:
            self.num_commits += 1
        else:
            self.num_prefills += 1
        self.num_cached = stop

    def commit(self, chosen: list[tuple[int, int, float]]) -> None:
        """Note a denoising step, which commits (position, token, log-prob) at masked positions."""
        for position, token, log_prob in chosen:
            self.ids[position] = token
            self.log_probs[position] = log_prob
            self.step_map[position] = self.step
        self.masked = [p for p in self.masked if self.step_map[p] < 0]
        # Every earlier block was stored before this one was denoised.
        self.num_cached = self.start
        self.step += 1

    def finished(self, stop_token_ids: frozenset[int]) -> Completion | None:
        """The completion if the last step finished the response; otherwise None.

        If the step finished a window or block, the next one becomes the current one.
        """
        decoded = self.masked[0] if self.masked else self.window_end
        # Only response tokens are searched, up to max_new_tokens: others do not end a response.
        for position in range(self._num_searched, min(decoded, self.limit)):
            if self.ids[position] in stop_token_ids:
                return self._completion("stop", position + 1)
        self._num_searched = decoded
        if not self.masked:
            if self.window_end == len(self.ids):
                return self._completion("length", self.limit)
            if self.window_end == self.end:
                self.start, self.step = self.end, 0
            self._enter(self.window_end)
        return None

    @property
    def passes(self) -> Passes:
        """Forward passes so far."""
        return Passes(
            self.num_prefills,
            self.num_denoising,
            self.num_commits,
            self.num_tokens,
            self.num_drafted,
            self.num_accepted,
            self.num_drafts,
        )

    def _completion(self, reason: FinishReason, stop: int) -> Completion:
        response = slice(self.prompt_length, self.end)
        return Completion(
            response_ids=[
                token if step >= 0 else self.mask_token_id
                for token, step in zip(self.ids[response], self.step_map[response], strict=True)
            ],
            step_map=self.step_map[response],
            log_probs=self.log_probs[response],
            num_response_tokens=stop - self.prompt_length,
            finish_reason=reason,
            passes=self.passes,
            initial_ids=self.initial_ids[: self.end - self.prompt_length],
        )
