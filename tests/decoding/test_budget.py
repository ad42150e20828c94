"""The cache's share of the memory: by arithmetic, and by what a process really takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.decoding.budget import cache_bytes_per_token, cache_tokens, fitting_cache
from t3d.decoding.cache import SlotCache
from t3d.decoding.config import DecodingConfig
from t3d.testing import tiny

SIZES = st.integers(0, 2**40)


@given(st.integers(1, 2**20), st.integers(1, 100), SIZES, SIZES, SIZES)
def test_all_together_never_exceed_the_total(
    per_token: int, num_layers: int, total: int, held: int, reserved: int
) -> None:
    tokens = cache_tokens(per_token, num_layers, total=total, held=held, reserved=reserved)
    layer = per_token / num_layers
    assert tokens >= 0
    if tokens > 0:
        assert tokens * (per_token + 2 * layer) + held + reserved <= total
    more = cache_tokens(per_token, num_layers, total=total + 2**30, held=held, reserved=reserved)
    assert more >= tokens


def test_bytes_a_token_are_those_of_the_cache() -> None:
    model = tiny(num_key_value_heads=1)
    cache = SlotCache(model.config, 3, 5, dtype=model.dtype, device=model.device)
    held = sum(states.nbytes for states in cache.states)
    assert held == 15 * cache_bytes_per_token(model)


def test_errors_give_the_numbers_and_the_remedy() -> None:
    options = {"batch_size": 4, "prefill_chunk": 64}
    with pytest.raises(ValueError, match=r"memory_share must lie in \(0, 1\], got 1.5"):
        fitting_cache(tiny(), DecodingConfig(), memory_share=1.5, **options)
    message = (
        r"memory_share=1e-06 of .* GiB is 0.00 GiB; .* are taken, a pass of 4 .*: raise memory"
    )
    with pytest.raises(ValueError, match=message):
        fitting_cache(tiny(), DecodingConfig(), memory_share=1e-6, **options)


DECODE = """
import psutil, torch
from t3d.bench.roofline import peak_bytes, reset_peak
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Request
from t3d.decoding.budget import fitting_cache
from t3d.testing import tiny

torch.set_num_threads(1)
model = tiny(dtype=torch.float32, num_hidden_layers=8, num_key_value_heads=4, head_dim=512,
             max_position_embeddings=512)
config = DecodingConfig(block_size=4, denoising_steps=1, temperature=0.0, max_new_tokens=8)
# What libraries take at their first use is not the decoder's.
BlockDecoder(model, config, mask_token_id=63, stop_token_ids=(), batch_size=1).decode(
    [Request([1] * 8)]
)
cpu = torch.device("cpu")
reset_peak(cpu)
process, total = psutil.Process(), psutil.virtual_memory().total
allowed = process.memory_info().rss + 220 * 2**20
tokens = fitting_cache(model, config, memory_share=allowed / total, batch_size=16,
                       prefill_chunk=256)
decoder = BlockDecoder(model, config, mask_token_id=63, stop_token_ids=(), batch_size=16,
                       prefill_chunk=256, cache_tokens=tokens)
for request in range(16):
    decoder.submit(Request([1 + i % 50 for i in range(200 - 4 * request)]))
num_running = 0
while decoder.num_unfinished:
    decoder.step()
    num_running = max(num_running, len(decoder._scheduler.running))
# The system of a Mac does not tell the peak.
peak = peak_bytes(cpu) or process.memory_info().rss
print(num_running, peak / allowed)
"""


def test_a_process_stays_within_its_share() -> None:
    command = [sys.executable, "-W", "error", "-c", DECODE]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # Room for some of the 16 requests; with all at once the cache alone would exceed it.
    assert 1 < int(out[0]) < 8
    assert float(out[1]) <= 1
