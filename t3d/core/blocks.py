"""Block geometry: the only module that knows the block grid, its padding and who attends to whom.

Blocks lie on the absolute grid: position p belongs to block p // block_size, the prompt
included. A prompt's incomplete last block (its *remainder*) is the visible head of the
first generated block.

Letters in shapes: B batch, L length, T layout length, N blocks, S block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CLEAN = 0
"""Stream of finished tokens; noised views are streams 1, 2, ..."""
PADDING = -1
"""Stream of columns that hold nothing. They see only each other."""


@dataclass(frozen=True)
class Coordinates:
    """Position, block and stream of every column of a batch; int64 tensors of shape [B, T]."""

    position: Tensor
    block: Tensor
    stream: Tensor
    sequence: Tensor | None = None
    """Number of the sequence that a column belongs to, where a row holds several; by default a row
        is one sequence."""

    def __getitem__(self, index: Any) -> Coordinates:
        """Coordinates of some columns: the index is applied to every tensor."""
        sequence = None if self.sequence is None else self.sequence[index]
        return Coordinates(self.position[index], self.block[index], self.stream[index], sequence)

    @property
    def noised(self) -> Tensor:
        """Columns of noised views, bool [B, T]."""
        return self.stream > CLEAN


def may_attend(query: Coordinates, key: Coordinates) -> Tensor:
    """The attention rule of block diffusion, elementwise on broadcastable coordinates.

    A token sees the clean tokens of all earlier blocks and its own stream's tokens of its
    own block, both of its own sequence. For the clean stream that is block-causal attention; for
    a noised view it is what the decoder sees while it denoises that block (BD3LM,
    arXiv:2503.09573).
    """
    earlier = (key.stream == CLEAN) & (key.block < query.block) & (query.stream != PADDING)
    seen = earlier | ((key.stream == query.stream) & (key.block == query.block))
    if query.sequence is None or key.sequence is None:
        return seen
    return seen & (key.sequence == query.sequence)


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Bin packing: the longest sequence first, each into the first row that has room for it.

    Returns:
        The numbers of the sequences in each row of `width` columns. A sequence that is longer than
        `width` gets a row to itself.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for sequence in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
        fits = (row for row, left in enumerate(room) if left >= lengths[sequence])
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(sequence)
        room[row] -= lengths[sequence]
    return rows


def pack(grid: Coordinates, width: int) -> tuple[Coordinates, Tensor]:
    """Lay the sequences of a layout end to end in rows of `width`, without their padding.

    Returns:
        The coordinates of the R new rows, and for each of their columns the column of the flattened
        `grid` that it copies, int64 [R, W]. Rows that are shorter than the longest end with
        PADDING.
    """
    held = grid.stream != PADDING
    columns = held.flatten().nonzero()[:, 0].split(held.sum(1).tolist())
    rows = first_fit([len(own) for own in columns], width)
    laid = [torch.cat([columns[sequence] for sequence in row]) for row in rows]
    source = pad_sequence(laid, batch_first=True, padding_value=-1)
    inside, source = source >= 0, source.clamp(min=0)
    packed = Coordinates(
        grid.position.flatten()[source],
        grid.block.flatten()[source],
        torch.where(inside, grid.stream.flatten()[source], PADDING),
        torch.where(inside, source // grid.stream.shape[1], PADDING),
    )
    return packed, source


@dataclass(frozen=True)
class BlockLayout:
    """The absolute block grid of one block size."""

    block_size: int

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")

    def floor(self, position: int) -> int:
        """First position of the block that holds `position`."""
        return position - position % self.block_size

    def ceil(self, length: int) -> int:
        """The smallest multiple of the block size that is at least `length`."""
        return -(-length // self.block_size) * self.block_size

    def span(self, prompt_length: int, max_new_tokens: int) -> tuple[int, int]:
        """Positions [start, end) of the whole blocks that a decoder fills.

        `start` lies at or before the end of the prompt; the last block is whole, so up to
        block_size - 1 positions may lie beyond prompt_length + max_new_tokens.
        """
        return self.floor(prompt_length), self.ceil(prompt_length + max_new_tokens)

    def coordinates(self, position: Tensor, stream: Tensor) -> Coordinates:
        """Coordinates of columns with the given positions and streams, [B, T] each."""
        return Coordinates(position, position // self.block_size, stream)

    def clean(self, length: Tensor, width: int) -> Coordinates:
        """`width` clean columns, right-padded after each sequence's `length` [B]."""
        position = torch.arange(width, device=length.device).expand(length.shape[0], width)
        stream = torch.where(position < length[:, None], CLEAN, PADDING)
        return self.coordinates(position, stream)

    def training(self, prompt_length: Tensor, length: Tensor, num_views: int) -> Coordinates:
        """The layout [x0 || x_t^1 || x_t^2 ...] of one forward pass over clean and noised copies.

        The clean copy ends before each sequence's last block, because no noised token sees that;
        with one block as long as the sequence there is no clean copy. Every noised view starts at
        the block boundary at or before its response and ends with a whole block, as the decoder
        sees it. A noised column has the same position as its token in the clean copy, so the
        tokens of all columns are gathered from x0 or x_t by position.

        Args:
            prompt_length: [B] tokens before the response.
            length: [B] prompt and response tokens.
            num_views: how many noised copies follow the clean one.
        """
        start = prompt_length - prompt_length % self.block_size
        end = -(-length // self.block_size) * self.block_size
        width = int((end - start).max())
        offset = torch.arange(width, device=length.device)
        noised = start[:, None] + offset  # [B, width]
        inside = noised < end[:, None]
        noised = torch.where(inside, noised, 0)
        clean = self.clean(end - self.block_size, int(end.max()) - self.block_size)
        streams = [clean.stream]
        streams += [torch.where(inside, view, PADDING) for view in range(1, num_views + 1)]
        position = torch.cat([clean.position] + [noised] * num_views, dim=1)
        return self.coordinates(position, torch.cat(streams, dim=1))
