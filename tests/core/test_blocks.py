from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from t3d.core.blocks import CLEAN, PADDING, BlockLayout, Coordinates, first_fit, may_attend, pack

SIZES = st.integers(1, 8)
SEQUENCES = st.tuples(st.integers(0, 12), st.integers(1, 12))
"""Prompt length and response length."""
BATCHES = st.lists(SEQUENCES, min_size=1, max_size=4)


def layout_of(sequences: list[tuple[int, int]], size: int, num_views: int) -> Coordinates:
    prompt = torch.tensor([p for p, _ in sequences])
    length = torch.tensor([p + r for p, r in sequences])
    return BlockLayout(size).training(prompt, length, num_views)


def mask_of(grid: Coordinates) -> Tensor:
    """Bool [B, T, T]."""
    return may_attend(grid[:, :, None], grid[:, None])


def columns(grid: Coordinates, row: int) -> list[tuple[int, int]]:
    """(position, stream) of every column of one sequence."""
    return list(zip(grid.position[row].tolist(), grid.stream[row].tolist(), strict=True))


@given(SIZES, st.integers(0, 100), st.integers(1, 100))
def test_span_is_the_smallest_run_of_whole_blocks(size: int, prompt: int, new: int):
    layout = BlockLayout(size)
    start, end = layout.span(prompt, new)
    assert start % size == end % size == 0
    assert start <= prompt < start + size
    assert end - size < prompt + new <= end


@given(SIZES, st.integers(0, 100))
def test_floor_and_ceil_enclose_a_block(size: int, position: int):
    layout = BlockLayout(size)
    starts = list(range(0, position + 1, size))
    assert layout.floor(position) == starts[-1]
    assert layout.ceil(position) == (position if position in starts else starts[-1] + size)


@pytest.mark.parametrize("size", [0, -4])
def test_a_block_holds_at_least_one_token(size: int):
    with pytest.raises(ValueError, match=f"block_size must be at least 1, got {size}"):
        BlockLayout(size)


@given(SIZES, st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 5))
def test_clean_columns_count_up_and_end_with_the_sequence(
    size: int, lengths: list[int], extra: int
):
    width = max(lengths) + extra
    grid = BlockLayout(size).clean(torch.tensor(lengths), width)
    for row, length in enumerate(lengths):
        streams = [CLEAN] * length + [PADDING] * (width - length)
        assert columns(grid, row) == list(zip(range(width), streams, strict=True))
    assert torch.equal(grid.block, grid.position // size)
    assert not grid.noised.any()


@given(SIZES, BATCHES, st.integers(0, 3))
def test_training_layout_holds_one_clean_and_every_noised_copy(
    size: int, sequences: list[tuple[int, int]], num_views: int
):
    grid = layout_of(sequences, size, num_views)
    for row, (prompt, response) in enumerate(sequences):
        length = prompt + response
        start = max(p for p in range(0, prompt + 1, size))
        end = min(p for p in range(0, length + size, size) if p >= length)
        # No noised token sees the clean copy of the last block.
        expected = [(p, CLEAN) for p in range(end - size)]
        for view in range(1, num_views + 1):
            expected += [(p, view) for p in range(start, end)]
        # In this order, whatever padding stands between the copies.
        assert [c for c in columns(grid, row) if c[1] != PADDING] == expected
    assert torch.equal(grid.block, grid.position // size)
    assert torch.equal(grid.noised, grid.stream >= 1)


@given(SIZES, BATCHES, st.integers(1, 2))
def test_attention_follows_the_literal_rule(
    size: int, sequences: list[tuple[int, int]], num_views: int
):
    """Clean sees clean up to the end of its block; noised sees clean before its block and
    its own copy within it; padding and tokens never see each other.
    """
    grid = layout_of(sequences, size, num_views)
    mask = mask_of(grid)
    for row in range(len(sequences)):
        cells = columns(grid, row)
        for q, (query, query_stream) in enumerate(cells):
            block = next(b for b in (range(s, s + size) for s in range(0, 99, size)) if query in b)
            for k, (key, key_stream) in enumerate(cells):
                match query_stream, key_stream:
                    case (-1, -1):
                        expected = key in block
                    case (-1, _) | (_, -1):
                        expected = False
                    case (0, 0):
                        expected = key <= block[-1]
                    case (0, _):
                        expected = False
                    case (_, 0):
                        expected = key < block[0]
                    case _:
                        expected = query_stream == key_stream and key in block
                assert mask[row, q, k].item() is expected


@given(SIZES, BATCHES, st.integers(1, 3))
def test_every_query_sees_what_the_decoder_sees(
    size: int, sequences: list[tuple[int, int]], num_views: int
):
    """Each position up to the end of the query's block exactly once, and nothing later."""
    grid = layout_of(sequences, size, num_views)
    mask = mask_of(grid)
    for row, (prompt, response) in enumerate(sequences):
        cells = columns(grid, row)
        for q, (query, stream) in enumerate(cells):
            if stream == PADDING:
                continue
            end = (query // size + 1) * size
            if stream == CLEAN:
                end = min(end, prompt + response)
            seen = Counter(cells[k][0] for k in mask[row, q].nonzero()[:, 0].tolist())
            assert seen == Counter(range(end))


@given(SIZES, BATCHES, st.integers(0, 2))
def test_every_query_sees_itself(size: int, sequences: list[tuple[int, int]], num_views: int):
    mask = mask_of(layout_of(sequences, size, num_views))
    assert mask.diagonal(dim1=1, dim2=2).all()


@given(SIZES, SEQUENCES, BATCHES, st.integers(1, 3))
def test_other_sequences_change_nothing(
    size: int, sequence: tuple[int, int], others: list[tuple[int, int]], num_views: int
):
    alone = layout_of([sequence], size, num_views)
    among = layout_of([*others, sequence], size, num_views)
    kept = [grid.stream[-1] != PADDING for grid in (alone, among)]
    for one, other in ((alone.position, among.position), (alone.stream, among.stream)):
        assert torch.equal(one[-1, kept[0]], other[-1, kept[1]])
    masks = [mask_of(grid)[-1] for grid in (alone, among)]
    assert torch.equal(masks[0][kept[0]][:, kept[0]], masks[1][kept[1]][:, kept[1]])
    # No token sees a padding column.
    assert not masks[1][kept[1]][:, ~kept[1]].any()


@given(SIZES, BATCHES)
def test_views_leave_the_clean_copy_alone(size: int, sequences: list[tuple[int, int]]):
    """A clean query sees the same columns with and without noised copies."""
    plain, viewed = layout_of(sequences, size, 0), layout_of(sequences, size, 2)
    width = plain.position.shape[1]
    assert torch.equal(plain.position, viewed.position[:, :width])
    assert torch.equal(plain.stream, viewed.stream[:, :width])
    clean = viewed.stream == CLEAN
    mask = mask_of(viewed)
    assert torch.equal(mask[:, :width, :width], mask_of(plain))
    assert not (mask & clean[:, :, None] & ~clean[:, None]).any()


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 40))
def test_first_fit_holds_every_sequence_once_in_rows_that_are_half_full(
    lengths: list[int], width: int
):
    rows = first_fit(lengths, width)
    assert sorted(s for row in rows for s in row) == list(range(len(lengths)))
    held = [sum(lengths[s] for s in row) for row in rows]
    for row, total in zip(rows, held, strict=True):
        assert total <= width or len(row) == 1
    # What stands first in a row found no room in any earlier one.
    for number, row in enumerate(rows):
        assert all(total + lengths[row[0]] > width for total in held[:number])


@given(SIZES, BATCHES, st.integers(1, 3), st.integers(1, 200))
def test_packed_sequences_see_what_they_saw(
    size: int, sequences: list[tuple[int, int]], num_views: int, width: int
):
    grid = layout_of(sequences, size, num_views)
    packed, source = pack(grid, width)
    inside = packed.stream != PADDING
    assert sorted(source[inside].tolist()) == (
        (grid.stream != PADDING).flatten().nonzero()[:, 0].tolist()
    )
    assert packed.position.shape[1] <= max(width, grid.position.shape[1])
    # Padding remains only where a row is shorter than the longest.
    assert (inside.sum(1).max(), inside.any(1).all()) == (packed.position.shape[1], True)
    for name in ("position", "block", "stream"):
        values = getattr(grid, name).flatten()[source]
        assert torch.equal(getattr(packed, name)[inside], values[inside])
    own, column = source // grid.position.shape[1], source % grid.position.shape[1]
    expected = mask_of(grid)[own[:, :, None], column[:, :, None], column[:, None]]
    expected &= (own[:, :, None] == own[:, None]) & inside[:, None]
    mask = mask_of(packed)
    assert torch.equal(mask[inside], expected[inside])
    assert mask.diagonal(dim1=1, dim2=2).all()
