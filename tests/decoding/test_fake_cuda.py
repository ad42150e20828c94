"""Decoding on CUDA in bfloat16 without a GPU: devices, dtypes, and how much a pass asks of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from t3d.decoding import denoising, engine, graphs, sampling
from t3d.decoding.attention import find_varlen
from t3d.decoding.budget import pass_bytes
from t3d.decoding.config import DecodingConfig, Remasking
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Request
from t3d.decoding.transfer import Column
from t3d.models import BlockDiffusionLM, SDARConfig
from t3d.models.families import on_meta
from tests.fake_cuda import Operations, fake_cuda, needs_no_driver, to_fake_cuda

pytestmark = needs_no_driver

MASK = 59
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What a pass copies back; the first of two masked positions commits token 5."""
    seen: list[Tensor] = []

    def fetch(values: Tensor) -> Callable[[], list[list[float]]]:
        seen.append(values)
        num = values.shape[1]
        return lambda: [[5.0] * num, [-1.0] * num, [float(i % 2 == 0) for i in range(num)]]

    def columns(*given: Any) -> list[Column]:
        with _disable_current_modes():  # On the host, where numbers are real.
            return denoising_columns(*given)

    denoising_columns = denoising.columns
    monkeypatch.setattr(denoising, "columns", columns)
    monkeypatch.setattr(engine, "columns", columns)
    monkeypatch.setattr(denoising, "fetch", fetch)
    # Else a list of one number is a constant, which is copied to a device that is not there.
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)
    # There is no device that could hold a graph.
    monkeypatch.setattr(graphs, "SEEN_BEFORE", 1000)
    return seen


def meta_model(**shape: Any) -> BlockDiffusionLM:
    document = SHAPE | shape | {"block_size": 4, "mask_token_id": MASK}
    return on_meta(SDARConfig.from_dict(document))


def decode(
    config: DecodingConfig, num_requests: int = 3, num_passes: int = 6, **shape: Any
) -> list[Operations]:
    """What each pass asked for, after the first, of requests with prompts of different lengths."""
    model, out = meta_model(**shape).eval(), []
    requests = [Request([1] * (8 + number), number) for number in range(num_requests)]
    mode = FakeTensorMode()
    with fake_cuda(mode):
        to_fake_cuda(model, torch.bfloat16)
        decoder = BlockDecoder(
            model, config, mask_token_id=MASK, stop_token_ids=(), batch_size=num_requests
        )
    for request in requests:
        decoder.submit(request)
    with fake_cuda(mode):
        decoder.step()
    for _ in range(num_passes):
        with fake_cuda(mode) as operations:
            decoder.step()
        out.append(operations)
    return out


@pytest.mark.parametrize("remasking", get_args(Remasking))
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.9)])
def test_every_strategy_runs_in_half_precision(
    remasking: Remasking, temperature: float, top_p: float, fetched: list[Tensor]
) -> None:
    # The last step of ancestral decoding would commit all that is left, which `fetched` does not.
    num_steps = 100 if remasking == "ancestral" else 3
    config = DecodingConfig(
        4, num_steps, remasking=remasking, temperature=temperature, top_p=top_p, max_new_tokens=24
    )
    decode(config)
    assert fetched
    assert {(values.device.type, values.dtype) for values in fetched} == {("cuda", torch.float32)}


@pytest.mark.parametrize("draft_states", [4, 9])
def test_verified_passes_run(draft_states: int, fetched: list[Tensor]) -> None:
    decode(DecodingConfig(4, 4, temperature=0.0, max_new_tokens=24, draft_states=draft_states))
    assert fetched


@pytest.mark.parametrize("at_once", [2**14, 2**26])
@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 5, "remasking": "ancestral", "denoising_steps": 100},
        {"temperature": 1.0, "remasking": "entropy_bounded"},
        {"temperature": 0.0, "remasking": "sequential", "draft_states": 4},
    ],
)
def test_a_pass_takes_no_more_memory_than_is_reserved_for_it(
    setting: dict[str, Any],
    at_once: int,
    fetched: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", at_once)
    config = replace(DecodingConfig(4, 4, max_new_tokens=24), **setting)
    shape = {"vocab_size": 4000}
    model = meta_model(**shape)
    nn.Module.to(model, torch.bfloat16)
    reserved = pass_bytes(model, config, 8, prefill_chunk=0)
    peak = max(own.peak for own in decode(config, num_requests=8, **shape))
    assert fetched
    # A kernel of the library takes memory of its own, which is not seen here.
    assert 0.1 * reserved < peak <= reserved


@pytest.mark.skipif(find_varlen() is None, reason="this PyTorch has no varlen_attn with seqused_k")
def test_a_pass_asks_for_few_operations_and_two_copies(fetched: list[Tensor]) -> None:
    """A layer of SDAR has 7 products, 4 norms, 3 of rotation, 2 of memory, attention and 4 more.

    Before, a pass of 28 layers took 1,911 operations and up to 7 copies.
    """
    config = DecodingConfig(4, 2, temperature=1.0, max_new_tokens=64)
    by_layers = {
        layers: decode(config, num_requests=8, num_hidden_layers=layers) for layers in (2, 3)
    }
    for few, more in zip(*by_layers.values(), strict=True):
        per_layer = more.on_device.total() - few.on_device.total()
        beside = few.on_device.total() - 2 * per_layer
        assert per_layer <= 21, more.on_device - few.on_device
        assert beside <= 49, sorted(few.on_device.items())
        assert few.copies == {"cpu to cuda": 1}
    assert len(fetched) == 2 * (6 + 1)
