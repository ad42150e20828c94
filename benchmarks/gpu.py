"""GPU tests and benchmarks in one command of some minutes: `make gpu`.

Needs torch, transformers, accelerate, psutil, pyarrow and rich. `--device cpu` rehearses it at toy
size. Rows appear as they are measured; the table at the end has the estimates beside them.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from t3d.bench import decode, train
from t3d.bench.config import DecodeSettings, Shape
from t3d.bench.roofline import measure_rates
from t3d.bench.subject import device_name, random_model
from t3d.core.blocks import BlockLayout
from t3d.core.dtypes import Dtype
from t3d.decoding import attention, graphs
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Completion, Request
from t3d.models.attention import attention_mask
from t3d.testing import tiny
from t3d.training.config import TrainingConfig
from t3d.training.methods import METHODS

TOY: dict[str, Any] = {
    "model_type": "sdar",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "block_size": 4,
}
ROOF = {(1, 1): 4_916, (1, 2): 2_458, (1, 4): 1_229, (128, 1): 121_700, (128, 2): 81_100}
ROOF |= {(128, 4): 48_700}
"""Tokens a second that bandwidth and arithmetic of an H200 allow, by batch size and steps; computed
for SDAR-1.7B in bfloat16, not measured."""
IDS: dict[str, Any] = {"mask_token_id": 63, "stop_token_ids": (), "banned_token_ids": ()}


def requests(num: int, length: int) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 62, (num, length), generator=generator)
    return [Request(row, seed) for seed, row in enumerate(ids.tolist())]


def decoded(
    device: str, dtype: torch.dtype, temperature: float = 0.0, ahead: bool | None = None
) -> list[Completion]:
    """Requests of one small model, as the batched engine decodes them."""
    model = tiny(seed=1, dtype=dtype, head_dim=32, vocab_size=64)
    nn.Module.to(model, device)
    config = DecodingConfig(4, 2, temperature=temperature, max_new_tokens=64)
    decoder = BlockDecoder(model, config, **IDS, batch_size=5, ahead=ahead)
    return decoder.decode(requests(16, 9))


def ids_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.response_ids for completion in completions]


def engine_equals_oracle(device: str) -> bool:
    """Ids on the device against the slow decoder on the CPU, in float64."""
    model = tiny(seed=1, head_dim=32, vocab_size=64)
    config = DecodingConfig(4, 2, temperature=0.0, max_new_tokens=64)
    slow = [decode_one(model, request, config, **IDS) for request in requests(16, 9)]
    return ids_of(decoded(device, torch.float64)) == ids_of(slow)


def float32_equals_cpu(device: str) -> bool:
    """Ids on the device against those on the CPU, in float32, sampled."""
    there, here = (ids_of(decoded(d, torch.float32, 1.0)) for d in (device, "cpu"))
    return there == here


def graphs_equal_eager(device: str) -> bool:
    """Ids in bfloat16 by CUDA graphs against passes that are launched one by one."""
    fast = ids_of(decoded(device, torch.bfloat16))
    before, graphs.SEEN_BEFORE = graphs.SEEN_BEFORE, sys.maxsize
    eager = ids_of(decoded(device, torch.bfloat16))
    graphs.SEEN_BEFORE = before
    return fast == eager


def ahead_equals_waiting(device: str) -> bool:
    """Ids in bfloat16 of passes that are launched before the last one is read, and after."""
    fast, slow = (ids_of(decoded(device, torch.bfloat16, 1.0, own)) for own in (True, False))
    return fast == slow


def flash_equals_sdpa(device: str) -> bool:
    """First tokens in bfloat16 by FlashAttention against sdpa; later ones may round apart."""
    fast = ids_of(decoded(device, torch.bfloat16))
    find, attention.find_varlen = attention.find_varlen, lambda: None  # type: ignore[assignment]
    slow = ids_of(decoded(device, torch.bfloat16))
    attention.find_varlen = find
    equal = sum(a[:3] == b[:3] for a, b in zip(fast, slow, strict=True))
    return equal >= 0.75 * len(fast)


def flex_equals_sdpa(device: str) -> bool:
    """Logits of the clean-noised layout through FlexAttention and through sdpa."""
    model = tiny(dtype=torch.float32, head_dim=16)
    nn.Module.to(model, device)
    prompt, length = torch.tensor([5, 9], device=device), torch.tensor([33, 24], device=device)
    grid = BlockLayout(4).training(prompt, length, 1)
    ids = torch.randint(0, 63, grid.position.shape, device=device)

    def logits(implementation: str) -> Tensor:
        model.set_attn_implementation(implementation)
        mask = attention_mask(implementation, grid, grid, torch.float32)
        with torch.no_grad():
            return model(ids, mask, grid.position, select=grid.noised).logits

    return bool((logits("sdpa") - logits("flex_attention")).abs().max() < 1e-3)


CHECKS: list[Callable[[str], bool]] = [
    engine_equals_oracle,
    float32_equals_cpu,
    graphs_equal_eager,
    ahead_equals_waiting,
    flash_equals_sdpa,
    flex_equals_sdpa,
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; rehearse with --device cpu", file=sys.stderr)
        return 1
    console, began = Console(width=110), time.perf_counter()
    table = Table("what", "result", "estimate", title="t3d on a GPU")
    failed = 0

    def tell(what: str, result: str, estimate: str = "") -> None:
        table.add_row(what, result, estimate)
        console.print(f"{time.perf_counter() - began:6.0f} s  {what}: {result}")

    def attempt(what: str, call: Callable[[], None]) -> None:
        """What fails is a row, too: the others are still worth their time."""
        nonlocal failed
        try:
            call()
        except Exception as error:
            failed += 1
            tell(what, f"FAILED: {type(error).__name__}: {str(error)[:300]}")

    def check(own: Callable[[str], bool]) -> None:
        good = own(device)
        assert good, "not equal"
        tell(own.__name__, "ok")

    for own in CHECKS:
        attempt(own.__name__, lambda own=own: check(own))
    on = torch.device(device)
    shape: Shape = "sdar-1.7b" if device == "cuda" else TOY
    dtype: Dtype = "bfloat16" if device == "cuda" else "float32"
    new_tokens = 64 if device == "cuda" else 16

    def decoding() -> None:
        rates = measure_rates(on, getattr(torch, dtype))
        tell("copy", f"{rates.bytes_per_second / 1e9:,.0f} GB/s", "4,300 (H200)")
        tell("matrix product", f"{rates.flops_per_second / 1e12:.1f} TFLOP/s", "790 (H200)")
        lm = random_model(shape, on, dtype)
        for batch in (1, 32, 128) if device == "cuda" else (1, 4):
            settings = DecodeSettings(
                engines=("t3d",),
                batch_sizes=(batch,),
                prompt_tokens=(64, 64),
                new_tokens=new_tokens,
                num_requests=batch,
                repeats=2,
            )
            for row in decode.measure(lm, settings, rates):
                roof = ROOF.get((batch, row.denoising_steps)) if device == "cuda" else None
                tell(
                    f"decode, batch {batch}, {row.denoising_steps} steps",
                    f"{row.tokens_per_second:,.0f} tokens/s, {row.roofline_share:.0%} of the bound",
                    "" if roof is None else f"bound {roof:,}",
                )

    def ahead() -> None:
        lm = random_model(shape, on, dtype)
        config = DecodingConfig(4, 4, max_new_tokens=new_tokens)
        for batch in (1, 32, 128, 256) if device == "cuda" else (1, 4):
            seconds = []
            for own in (False, True):
                decoder = BlockDecoder(lm.model, config, **IDS, batch_size=batch, ahead=own)
                decoder.decode(requests(batch, 64))
                started = time.perf_counter()
                decoder.decode(requests(batch, 64))
                seconds.append(time.perf_counter() - started)
            tell(
                f"passes launched ahead, batch {batch}",
                f"{seconds[0] / seconds[1]:.2f} times as fast as one after the other",
            )

    def training(micro: int, checkpointing: bool) -> None:
        config = TrainingConfig(
            steps=3,
            batch_size=2 * micro,
            micro_batch_size=micro,
            dtype=dtype,
            activation_checkpointing=checkpointing,
        )
        rates = measure_rates(on, getattr(torch, dtype))
        row = train.measure(
            random_model(shape, on, "float32"), "t3d", METHODS["t3d"], config, rates
        )
        memory = 0 if row.peak_memory_bytes is None else row.peak_memory_bytes
        tell(
            f"train t3d, {micro} sequences a pass" + ", checkpointing" * checkpointing,
            f"{row.tokens_per_second:,.0f} tokens/s, MFU {row.mfu:.0%}, {memory / 2**30:.1f} GiB",
            "MFU 35 to 50 %",
        )

    attempt("decode", decoding)
    attempt("passes launched ahead", ahead)
    for micro, checkpointing in ((1, False), (8, True)):
        attempt(f"train, {micro}", lambda m=micro, c=checkpointing: training(m, c))
    console.print(table)
    name = device_name(on) if device == "cuda" else platform.machine()
    console.print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
