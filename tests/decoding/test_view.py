"""The model as the decoder runs it: attention by groups, packed weights, shared parameters."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from t3d.decoding import attention, packing
from t3d.decoding.attention import Group, attend
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.packing import PackedLinear, packable, packed_bytes
from t3d.decoding.request import Request
from t3d.decoding.view import ViewMaker
from t3d.testing import tiny

HEADS, KEY_HEADS, SIZE, ROWS, SLOTS = 6, 2, 4, 5, 32


@pytest.fixture
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MANY_WEIGHTS", 1)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def group_of(rows: list[int], position: Tensor, num_visible: int, **shape: int) -> Group:
    """A group of clean tokens, each in the slot of its position."""
    return Group.of(rows, position, position, torch.zeros_like(position), num_visible, **shape)


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 3), st.integers(1, 4)),
        min_size=1,
        max_size=ROWS,
    ),
    st.permutations(range(ROWS)),
    st.sampled_from([0, 4, 64]),
)
def test_groups_attend_as_each_sequence_alone(
    shapes: list[tuple[int, int, int]], rows: list[int], folded_width: int
) -> None:
    """Sequences of (block size, blocks stored, blocks that run), in any rows of the cache."""
    keys, values = random(2, ROWS, KEY_HEADS, SLOTS, SIZE)
    by_kind: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, (size, stored, running) in zip(rows, shapes, strict=False):
        by_kind.setdefault((size * running, size), []).append((row, size * stored))
    groups, expected = [], []
    num = sum(width * len(own) for (width, _), own in by_kind.items())
    query = random(1, HEADS, num, SIZE)
    start = 0
    for (width, size), own in by_kind.items():
        first = torch.tensor([[first] for _, first in own])
        position = first + torch.arange(width)
        visible = max(first for _, first in own) + width
        own_rows = [row for row, _ in own]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "FOLDED_WIDTH", folded_width)
            groups.append(group_of(own_rows, position, visible, block_size=size, heads_per_key=3))
        for row, first in own:
            for place in range(first, first + width):
                seen = slice(0, (place // size + 1) * size)
                k, v = (states[row, :, seen].repeat_interleave(3, 0) for states in (keys, values))
                scores = (k @ query[0, :, start, :, None])[..., 0] * 0.3
                expected.append((scores.softmax(-1)[:, None] @ v)[:, 0])
                start += 1
    out, _ = attend(nn.Identity(), query, keys, values, torch.empty(0), scaling=0.3, groups=groups)
    torch.testing.assert_close(out[0], torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [[0, 1, 2], [1, 2], [2]])
def test_neighbours_are_read_in_place(rows: list[int]) -> None:
    keys, position = random(ROWS, KEY_HEADS, SLOTS, SIZE), torch.zeros(len(rows), 1).long()
    group = group_of(rows, position, 1, block_size=1, heads_per_key=1)
    assert torch.equal(keys[group.rows], keys[rows])
    assert keys[group.rows].data_ptr() == keys[rows[0]].data_ptr()


def assign(linear: nn.Linear) -> None:
    linear.weight.data = linear.weight.data + 1


def descend(linear: nn.Linear) -> None:
    linear(torch.ones(2, 12)).sum().backward()
    torch.optim.SGD(linear.parameters(), lr=1.0).step()


@torch.no_grad()
def write(linear: nn.Linear) -> None:
    linear.weight[3] += 7


@pytest.mark.parametrize("change", [assign, descend, write])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_a_packed_layer_is_the_layer_also_after_a_change(
    change: Callable[[nn.Linear], None], bias: bool, rows: int
) -> None:
    linear = nn.Linear(12, 20, bias=bias)
    packed, x = PackedLinear.of(linear), torch.randn(1, rows, 12)
    with torch.inference_mode():
        before = packed(x)
    torch.testing.assert_close(before, F.linear(x, linear.weight, linear.bias))
    change(linear)
    with torch.inference_mode():
        after = packed(x)
    torch.testing.assert_close(after, F.linear(x, linear.weight, linear.bias))
    assert not torch.equal(before, after)


def test_large_layers_in_float32_are_packed() -> None:
    assert len(packable(nn.Linear(512, 512))) == 1
    assert packable(nn.Linear(512, 511)) == []
    assert packable(nn.Linear(512, 512, dtype=torch.float64)) == []
    with torch.inference_mode():
        assert packable(nn.Linear(512, 512)) == []


@pytest.mark.usefixtures("small_layers_too")
def test_they_are_packed_only_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny(dtype=torch.float32)
    layers = packable(model)
    assert model.get_output_embeddings() in layers
    assert packed_bytes(layers) == 4 * sum(layer.weight.numel() for layer in layers)
    for total, kept in ((4 * packed_bytes(layers), []), (4 * packed_bytes(layers) + 1, layers)):
        memory = SimpleNamespace(total=total)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert packable(model) == kept


@pytest.mark.usefixtures("small_layers_too")
def test_a_view_shares_every_parameter_and_leaves_the_model_alone() -> None:
    model = tiny(dtype=torch.float32).train()
    kinds = [type(module) for module in model.modules()]
    view = ViewMaker(model)()
    assert dict(view.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for ours, theirs in zip(view.parameters(), model.parameters(), strict=True):
        assert ours is theirs
    assert any(isinstance(module, PackedLinear) for module in view.modules())
    assert not any(module.training for module in view.modules())
    assert all(module.training for module in model.modules())
    assert [type(module) for module in model.modules()] == kinds
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.usefixtures("small_layers_too")
def test_a_decoder_follows_its_model() -> None:
    model = tiny(dtype=torch.float32)
    config = DecodingConfig(denoising_steps=2, temperature=0.0, max_new_tokens=16)

    def decoder() -> BlockDecoder:
        return BlockDecoder(model, config, mask_token_id=63, stop_token_ids=(), batch_size=2)

    requests, kept = [Request([1, 2, 3]), Request([4])], decoder()
    before = kept.decode(requests)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    after = kept.decode(requests)
    assert after == decoder().decode(requests)
    assert [c.response_ids for c in after] != [c.response_ids for c in before]
