"""Costs against torch's own counter, memory against a tensor of known size."""

from __future__ import annotations

import gc
import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from t3d.bench.roofline import (
    Load,
    ModelCosts,
    Rates,
    measure_rates,
    peak_bytes,
    reset_peak,
)
from t3d.models import FAMILIES, BlockDiffusionLM
from t3d.testing import tiny

CPU = torch.device("cpu")
# Rotary frequencies and weights of norms are not told apart: together a few percent here.
CLOSE = 0.04
ROWS, LENGTH, NUM_LOGITS = 3, 40, 120


def eager(family: str, tied: bool = False) -> BlockDiffusionLM:
    """Its attention is matrix products, which the counter knows on every device."""
    model = tiny(
        family=family,
        dtype=torch.float32,
        attn_implementation="eager",
        tie_word_embeddings=tied,
        # Without dead columns and rows in the products.
        hidden_size=64,
        intermediate_size=128,
        head_dim=16,
        vocab_size=192,
    )
    assert model.config._attn_implementation == "eager"
    return model


def run(model: nn.Module, *, backward: bool = False) -> int:
    """FLOPs that the counter sees in a pass where everything sees everything."""
    mask = torch.zeros(ROWS, 1, LENGTH, LENGTH)
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 90
    with FlopCounterMode(display=False) as counter:
        logits: Tensor = model(ids, mask, select=torch.arange(NUM_LOGITS)).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


WORK = {"tokens": ROWS * LENGTH, "pairs": ROWS * LENGTH**2, "logits": NUM_LOGITS}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_forward_flops_are_those_that_torch_counts(family: str, tied: bool) -> None:
    model = eager(family, tied)
    costs = ModelCosts.of(model)
    with torch.no_grad():
        counted = run(model)
    assert costs.flops(Load(**WORK)) == pytest.approx(counted, rel=CLOSE)
    # Every term is large enough to be missed.
    for term in WORK:
        alone = costs.flops(Load(**{term: WORK[term]}))
        assert alone > 1.5 * CLOSE * counted


@pytest.mark.parametrize("tied", [False, True])
def test_a_pass_reads_all_weights_but_the_embedding(tied: bool) -> None:
    model = tiny(dtype=torch.bfloat16, tie_word_embeddings=tied)
    bytes_held = 2 * model.num_parameters()
    table = 2 * model.config.vocab_size * model.config.hidden_size
    # A tied head reads the table.
    expected = bytes_held if tied else bytes_held - table
    assert ModelCosts.of(model).weight_bytes(5) == expected


def test_a_pass_reads_the_experts_that_its_tokens_ask_for() -> None:
    # Two of four a token.
    costs = ModelCosts.of(tiny(family="sdar_moe", dtype=torch.float32))
    one, two, three = (costs.weight_bytes(tokens) for tokens in (1, 2, 3))
    assert two - one == 4 * costs.experts / 2
    assert three == two


def test_cache_bytes_are_those_of_the_cache() -> None:
    from t3d.decoding.cache import SlotCache

    model = tiny(dtype=torch.float16)
    cache = SlotCache(model.config, 1, 7, dtype=model.dtype, device=CPU)
    held = sum(t.numel() * t.element_size() for t in cache.states)
    costs = ModelCosts.of(model)
    moved = costs.num_bytes(Load(tokens=3, stored=4))
    assert moved - costs.weight_bytes(3) == held


def test_the_slower_of_memory_and_arithmetic_bounds() -> None:
    rates = Rates(bytes_per_second=10.0, flops_per_second=100.0)
    assert rates.seconds(20.0, 100.0) == 2
    assert rates.seconds(20.0, 500.0) == 5


def test_rates_are_positive_numbers() -> None:
    rates = measure_rates(CPU, torch.float32, copy_bytes=1 << 16, side=64)
    for rate in (rates.bytes_per_second, rates.flops_per_second):
        assert math.isfinite(rate)
        assert rate > 0


def test_peak_memory_is_that_since_the_reset() -> None:
    size = 1 << 27

    def use() -> None:
        torch.ones(size, dtype=torch.uint8)

    if sys.platform != "linux":
        assert peak_bytes(CPU) is None
        return
    # What other tests left would go meanwhile.
    gc.collect()
    reset_peak(CPU)
    before = peak_bytes(CPU)
    use()
    after = peak_bytes(CPU)
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(size, rel=0.1)
    reset_peak(CPU)
    again = peak_bytes(CPU)
    assert again is not None
    assert again < after - size / 2
