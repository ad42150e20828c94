"""The model as the decoder runs it: packed weights, other modules, shared parameters."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from t3d.decoding import packing
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.packing import PackedLinear, packable, packed_bytes
from t3d.decoding.request import Request
from t3d.decoding.view import SignedRotary, ViewMaker
from t3d.testing import tiny


@pytest.fixture
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MANY_WEIGHTS", 1)


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
    view = ViewMaker(model)(8)
    assert dict(view.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for ours, theirs in zip(view.parameters(), model.parameters(), strict=True):
        assert ours is theirs
    assert any(isinstance(module, PackedLinear) for module in view.modules())
    assert not any(module.training for module in view.modules())
    assert all(module.training for module in model.modules())
    assert [type(module) for module in model.modules()] == kinds
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("rope_type", ["default", "linear", "yarn", "dynamic"])
def test_positions_turn_as_in_the_library(rope_type: str) -> None:
    """From a table, unless the embedding depends on the last position of a pass."""
    rope = {"rope_type": rope_type, "rope_theta": 1e4}
    model = tiny(rope_parameters=rope | ({} if rope_type == "default" else {"factor": 2.0}))
    rotary = ViewMaker(model)(40).base_model.rotary_emb
    assert isinstance(rotary, SignedRotary)
    assert (rotary.table is None) is (rope_type == "dynamic")
    states, position = torch.randn(7, 3, 8).double(), torch.tensor([[3, 0, 39, 5, 6, 7, 20]])
    actual = [own[:, 0] for own in rotary(states, position)]
    cos, sin = (own[0] for own in rotary.rotary(states, position))
    torch.testing.assert_close(actual[0], cos, rtol=0, atol=0)
    halves = torch.cat([-torch.ones(4), torch.ones(4)])
    torch.testing.assert_close(actual[1], sin * halves, rtol=0, atol=0)


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
