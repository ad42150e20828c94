"""GPU tests and benchmarks in one command, one table at the end: `make gpu`.

Needs torch, transformers, pyarrow and rich; `--device cpu` rehearses it at toy size.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from t3d.core.blocks import BlockLayout
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Request
from t3d.models import SDARConfig, SDARForCausalLM
from t3d.models.attention import attention_mask
from t3d.testing import tiny

SDAR_1_7B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "mask_token_id": 151669,
}
TOY = {**SDAR_1_7B, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96}
TOY |= {"num_hidden_layers": 2, "head_dim": 16, "mask_token_id": 511}


def requests(num: int, length: int, vocab_size: int) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size - 1, (num, length), generator=generator)
    return [Request(row, seed) for seed, row in enumerate(ids.tolist())]


def engine_equals_oracle(device: str) -> bool:
    """Ids and step maps on the device against the slow decoder on the CPU, in float64."""
    model = tiny(seed=1)
    config = DecodingConfig(block_size=4, denoising_steps=2, temperature=0.0, max_new_tokens=24)
    ids = {"mask_token_id": 63, "stop_token_ids": (), "banned_token_ids": ()}
    prompts = requests(6, 9, 64)
    slow = [decode_one(model, request, config, **ids) for request in prompts]
    nn.Module.to(model, device)
    fast = BlockDecoder(model, config, **ids, batch_size=3).decode(prompts)
    return all(
        a.response_ids == b.response_ids and a.step_map == b.step_map
        for a, b in zip(slow, fast, strict=True)
    )


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


def seconds(call: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def decode_rate(model: SDARForCausalLM, batch: int, steps: int, new_tokens: int) -> float:
    """Tokens per second of the engine; random weights, so nothing ever stops."""
    config = DecodingConfig(
        block_size=4, denoising_steps=steps, temperature=0.0, max_new_tokens=new_tokens
    )
    mask = model.config.mask_token_id
    assert mask is not None
    decoder = BlockDecoder(model, config, mask_token_id=mask, stop_token_ids=(), batch_size=batch)
    prompts = requests(batch, 64, model.config.vocab_size)
    decoder.decode(prompts[:1])
    device = model.device.type
    return batch * new_tokens / seconds(lambda: decoder.decode(prompts), device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; rehearse with --device cpu", file=sys.stderr)
        return 1
    rows: list[tuple[str, str]] = []
    checks = {"engine = oracle": engine_equals_oracle, "flex = sdpa": flex_equals_sdpa}
    verdicts = {name: check(device) for name, check in checks.items()}
    rows += [(name, "ok" if good else "FAILED") for name, good in verdicts.items()]
    shape, dtype = (TOY, torch.float32) if device == "cpu" else (SDAR_1_7B, torch.bfloat16)
    with torch.device(device):
        torch.manual_seed(0)
        settings = SDARConfig.from_dict({"block_size": 4, "tie_word_embeddings": False, **shape})
        # In the dtype from the start: a cast would round the rotary frequencies.
        torch.set_default_dtype(dtype)
        model = SDARForCausalLM(settings).eval()
        torch.set_default_dtype(torch.float32)
    num = sum(p.numel() for p in model.parameters())
    for batch in (1, 32, 128) if device != "cpu" else (1, 4):
        for steps in (4, 2, 1):
            rate = decode_rate(model, batch, steps, 64 if device != "cpu" else 16)
            label = f"decode {num / 1e9:.2f} B, batch {batch}, {steps} steps a block"
            rows.append((label, f"{rate:,.0f} tokens/s"))
    table = Table("what", "result", title=f"{device}, {dtype}")
    for row in rows:
        table.add_row(*row)
    console = Console(width=100)
    console.print(table)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    console.print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
