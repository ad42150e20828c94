"""Attention by blocks: both backends against each query alone, and decoding by either."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from t3d.decoding import attention, graphs, runner
from t3d.decoding.attention import Blocks, GroupedAttention, Span, VarlenAttention
from t3d.decoding.config import DecodingConfig, Remasking
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Request
from t3d.testing import tiny

HEADS, KEY_HEADS, SIZE, ROWS, SLOTS, SCALE = 6, 2, 4, 5, 40, 0.3

Block = tuple[int, int, int, int]
"""Row, start, slot and size."""


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def varlen_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    enable_gqa: bool,
    seqused_k: Tensor,
) -> Tensor:
    """What the documentation of `varlen_attn` says: a sequence sees its first `seqused_k` keys."""
    assert enable_gqa
    assert {cu.dtype for cu in (cu_seq_q, cu_seq_k, seqused_k)} == {torch.int32}
    assert len(cu_seq_q) == len(cu_seq_k) == len(seqused_k) + 1
    out = torch.full_like(query, torch.nan)
    repeats = query.shape[1] // key.shape[1]
    for number, used in enumerate(seqused_k.tolist()):
        own = slice(*cu_seq_q[number : number + 2].tolist())
        first = int(cu_seq_k[number])
        assert own.stop - own.start <= max_q
        assert used <= max_k
        k, v = (s[first : first + used].repeat_interleave(repeats, 1) for s in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[own], k) * scale
        out[own] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return out


def expected(query: Tensor, keys: Tensor, values: Tensor, blocks: list[Block]) -> Tensor:
    """Each block alone, over the slots before its start and its own."""
    out, first = [], 0
    for row, start, slot, size in blocks:
        seen = [*range(start), *range(slot, slot + size)]
        k, v = (s[row, seen].repeat_interleave(HEADS // KEY_HEADS, 1) for s in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[first : first + size], k) * SCALE
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        first += size
    return torch.cat(out)


def packed(blocks: list[Block]) -> Blocks:
    return Blocks(*map(np.array, zip(*blocks, strict=True)))


def owned(layout: Blocks) -> list[Tensor]:
    """Row, start, slot and size of each token's block."""
    return [torch.tensor(column) for column in layout.spread()[0]]


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(0, 4), st.booleans()),
        min_size=1,
        max_size=ROWS,
    ),
    st.permutations(range(ROWS)),
)
def test_groups_attend_as_each_block_alone(
    shapes: list[tuple[int, int, int, bool]], rows: list[int]
) -> None:
    """Sequences of (blocks that run, block size, blocks before them, side by side or a chain)."""
    sequences = []
    for row, (num, size, before, beside) in zip(rows, shapes, strict=False):
        first = size * before
        own = [
            (row, first if beside else first + size * i, first + size * i, size) for i in range(num)
        ]
        sequences.append(own)
    sequences.sort(key=lambda own: (len(own), own[0][3]))
    blocks = [block for own in sequences for block in own]
    spans = []
    for (num, size), together in groupby(sequences, key=lambda own: (len(own), own[0][3])):
        alike = list(together)
        stop = max(block[2] for own in alike for block in own) + size
        spans.append(Span([own[0][0] for own in alike], num * size, stop, num == 1))
    keys, values = random(2, ROWS, SLOTS, KEY_HEADS, SIZE)
    layout = packed(blocks)
    query = random(int(layout.size.sum()), HEADS, SIZE, seed=1)
    attend = GroupedAttention(
        owned(layout),
        spans,
        heads_per_key=HEADS // KEY_HEADS,
        dtype=torch.float64,
    )
    actual = attend(query, keys, values, SCALE)
    torch.testing.assert_close(actual, expected(query, keys, values, blocks), rtol=0, atol=1e-12)


@given(
    st.lists(
        st.tuples(st.integers(0, ROWS - 1), st.sampled_from([1, 2, 4]), st.integers(0, 9)),
        min_size=1,
        max_size=9,
    )
)
def test_the_call_of_flash_attention_means_each_block_alone(
    shapes: list[tuple[int, int, int]],
) -> None:
    """Blocks of (row, size, number of blocks before it), several of them maybe in one row."""
    blocks = [(row, size * before, size * before, size) for row, size, before in shapes]
    keys, values = random(2, ROWS, SLOTS, KEY_HEADS, SIZE)
    layout = packed(blocks)
    query = random(int(layout.size.sum()), HEADS, SIZE, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "find_varlen", lambda: varlen_reference)
        table = torch.tensor(VarlenAttention.table(layout, num_slots=SLOTS))
        attend = VarlenAttention(table, num_slots=SLOTS, largest=max(b[3] for b in blocks))
        actual = attend(query, keys, values, SCALE)
    torch.testing.assert_close(actual, expected(query, keys, values, blocks), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 2], [2]])
def test_neighbours_are_read_in_place(rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values = random(2, ROWS, SLOTS, KEY_HEADS, SIZE)
    layout = packed([(row, 0, 0, 1) for row in rows])
    spans = [Span(rows, 1, 1, True)]
    attend = GroupedAttention(
        owned(layout),
        spans,
        heads_per_key=3,
        dtype=torch.float64,
    )
    read: list[int] = []
    real = attention.F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        read.append(key.data_ptr())
        return real(query, key, value, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    attend(random(len(rows), HEADS, SIZE), keys, values, SCALE)
    assert read == [keys[rows[0]].data_ptr()]


@pytest.mark.parametrize("draft_states", [1, 3])
def test_decoding_by_flash_attention_is_the_oracles(
    draft_states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of two block sizes, by the plain reference of the call that CUDA gets."""
    used = []

    class Counted(VarlenAttention):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            used.append(True)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(attention, "find_varlen", lambda: varlen_reference)
    monkeypatch.setattr(runner, "takes_varlen", lambda device, dtype: True)
    monkeypatch.setattr(runner, "VarlenAttention", Counted)
    model, special = tiny(), {"mask_token_id": 63, "stop_token_ids": {7}}
    settings = [
        DecodingConfig(size, size, temperature=1.0, max_new_tokens=14, draft_states=draft_states)
        for size in (2, 4)
    ]
    requests = [
        Request([1 + i % 5 for i in range(length)], seed, config=settings[seed % 2])
        for seed, length in enumerate((3, 9, 1, 6, 17))
    ]
    decoder = BlockDecoder(model, settings[0], **special, batch_size=3)
    for request, completion in zip(requests, decoder.decode(requests), strict=True):
        slow = decode_one(model, request, settings[0], **special)
        assert completion.response_ids == slow.response_ids
        assert completion.step_map == slow.step_map
    # Verified passes have states side by side, which FlashAttention cannot tell apart.
    assert used


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "remasking", ["low_confidence_static", "sequential", "low_confidence_dynamic", "ancestral"]
)
def test_passes_padded_to_few_shapes_decode_the_same(
    remasking: Remasking, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From buffers that every pass of a shape shares, as CUDA graphs read and write them."""
    monkeypatch.setattr(attention, "find_varlen", lambda: varlen_reference)
    monkeypatch.setattr(runner, "takes_varlen", lambda device, dtype: True)
    monkeypatch.setattr(graphs, "SEEN_BEFORE", 0)
    replays = []
    hold = graphs.StaticPasses._hold

    def spy(self: graphs.StaticPasses, numbers: Tensor, shape: graphs.Shape) -> graphs.Held:
        held = hold(self, numbers, shape)
        replay = held.replay

        def counted() -> None:
            replays.append(shape)
            replay()

        return replace(held, replay=counted)

    monkeypatch.setattr(graphs.StaticPasses, "_hold", spy)
    config = DecodingConfig(4, 3, remasking=remasking, temperature=temperature, max_new_tokens=40)
    requests = [
        Request([1 + i % 5 for i in range(length)], seed)
        for seed, length in enumerate((3, 9, 1, 6, 17, 2, 8))
    ]
    completions = []
    for capture, ahead in ((True, False), (True, True), (False, False)):
        monkeypatch.setattr(runner, "can_capture", lambda config, capture=capture: capture)
        decoder = BlockDecoder(
            tiny(), config, mask_token_id=63, stop_token_ids={7}, batch_size=4, ahead=ahead
        )
        completions.append(decoder.decode(requests))
        assert bool(replays)
    *few, eager = completions
    for own in few:
        assert [c.response_ids for c in own] == [c.response_ids for c in eager]
        assert [c.step_map for c in own] == [c.step_map for c in eager]
    assert len(set(replays)) < len(replays)
    assert all(graphs.padded(n) == n for num, _, wanted, _ in replays for n in (num, wanted))


@given(st.integers(1, 10_000))
def test_padding_is_a_quarter_at_most(num: int) -> None:
    padded = graphs.padded(num)
    assert num <= padded < 1.25 * num + 1
    assert graphs.padded(padded) == padded


@pytest.mark.parametrize(
    ("family", "rope", "expected"),
    [
        ("sdar", "default", True),
        ("llama", "linear", True),
        ("sdar_moe", "default", False),
        ("sdar", "dynamic", False),
    ],
)
def test_graphs_are_for_passes_that_never_wait(family: str, rope: str, expected: bool) -> None:
    config = tiny(family=family).config
    config.rope_parameters = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    assert graphs.can_capture(config) is expected
