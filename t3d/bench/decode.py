"""Decoding benchmark: speed of each engine, and how near it comes to the device's bound.

Decoding is greedy and static, prompts are random, and no response stops before its last token.
How many drafted steps hold depends on model and text: `passes_per_block` tells it for these.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from t3d.bench.config import DecodeSettings, Engine
from t3d.bench.roofline import Load, ModelCosts, Rates, peak_bytes, reset_peak, seconds
from t3d.bench.subject import device_name, ordinary_ids
from t3d.core.blocks import BlockLayout
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Completion, Request
from t3d.models import LanguageModel

Run = Callable[[Sequence[Request]], list[Completion]]
"""Function that decodes requests."""


@dataclass(frozen=True)
class DecodeRow:
    """One engine in one setting."""

    engine: Engine
    device: str
    dtype: str
    model: str
    batch_size: int
    denoising_steps: int
    block_size: int
    num_requests: int
    """Number of requests that were timed together."""
    tokens_per_second: float
    """Response tokens of all requests a second; prompts take time, but do not count."""
    latency_s: float | None
    """Mean seconds a request, measured at batch size 1 only."""
    passes_per_block: float
    """Denoising and commit passes, for each decoded block of a request."""
    peak_memory_bytes: int | None
    """Most memory that the run held, as `peak_bytes` measures it."""
    roofline_share: float
    """Shortest possible time for `needed_passes` in lockstep, as a share of the measured time;
        above 1 where verified decoding beats what a pass for every step allows."""
    ratio_to_ours: float
    """Tokens per second of this engine over those of engine t3d."""


def random_requests(lm: LanguageModel, settings: DecodeSettings, num: int) -> list[Request]:
    """Prompts of random tokens; the first ones are the same for every `num`."""
    draw, tokens = random.Random(settings.seed), ordinary_ids(lm)
    lengths = (draw.randint(*settings.prompt_tokens) for _ in range(num))
    return [Request(draw.choices(tokens, k=length)) for length in lengths]


def make_engine(lm: LanguageModel, engine: Engine, config: DecodingConfig, batch_size: int) -> Run:
    """A function that decodes requests with one engine, at most `batch_size` at a time.

    The function raises ValueError for a request that does not fit the model.
    """
    special: dict[str, Any] = {"mask_token_id": lm.mask_token_id, "stop_token_ids": ()}
    if engine == "oracle":
        return lambda requests: [decode_one(lm.model, r, config, **special) for r in requests]
    if engine == "t3d_verified":
        config = replace(config, draft_states=config.denoising_steps)
    return BlockDecoder(lm.model, config, **special, batch_size=batch_size).decode


def measure(lm: LanguageModel, settings: DecodeSettings, rates: Rates) -> list[DecodeRow]:
    """A row for every engine and setting.

    Raises:
        ValueError: for settings that do not fit the model or its device.
    """
    if "oracle" in settings.engines and lm.model.device.type != "cpu":
        raise ValueError("engine oracle decodes on a CPU alone; give --device cpu or leave it out")
    positions = lm.model.config.max_position_embeddings
    if settings.prompt_tokens[1] + settings.new_tokens > positions:
        raise ValueError(
            f"prompt_tokens of {settings.prompt_tokens[1]} and new_tokens={settings.new_tokens} "
            f"are more than the {positions} positions of {lm.name}; give smaller ones"
        )
    return [
        row
        for batch in settings.batch_sizes
        for steps in settings.denoising_steps
        for row in _measure_setting(lm, settings, rates, batch, steps)
    ]


def _measure_setting(
    lm: LanguageModel, settings: DecodeSettings, rates: Rates, batch: int, steps: int
) -> list[DecodeRow]:
    config, device = settings.decoding(steps), lm.model.device
    requests = random_requests(lm, settings, -(-settings.num_requests // batch) * batch)
    num_tokens = len(requests) * settings.new_tokens
    runs: dict[Engine, Run] = {
        engine: make_engine(lm, engine, config, batch) for engine in settings.engines
    }
    completions: dict[Engine, list[Completion]] = {}
    peaks: dict[Engine, int | None] = {}
    # The first run warms up, with the same requests as those that are timed.
    for engine, run in runs.items():
        reset_peak(device)
        completions[engine] = run(requests)
        peaks[engine] = peak_bytes(device)
    times: dict[Engine, list[float]] = {engine: [] for engine in settings.engines}
    for _ in range(settings.repeats):
        for engine, run in runs.items():
            times[engine].append(seconds(lambda run=run: run(requests), device))
    costs, ours = ModelCosts.of(lm.model), statistics.median(times["t3d"])
    rows = []
    for engine, own in times.items():
        taken, done = statistics.median(own), completions[engine]
        together = 1 if engine == "oracle" else batch
        passes = [
            needed_passes(*pair, settings.block_size) for pair in zip(requests, done, strict=True)
        ]
        loads = lockstep(passes, together)
        least = sum(rates.seconds(costs.num_bytes(load), costs.flops(load)) for load in loads)
        rows.append(
            DecodeRow(
                engine=engine,
                device=device_name(device),
                dtype=str(lm.model.dtype).removeprefix("torch."),
                model=lm.name,
                batch_size=batch,
                denoising_steps=steps,
                block_size=settings.block_size,
                num_requests=len(requests),
                tokens_per_second=num_tokens / taken,
                latency_s=taken / len(requests) if batch == 1 else None,
                passes_per_block=passes_per_block(requests, done, settings.block_size),
                peak_memory_bytes=peaks[engine],
                roofline_share=least / taken,
                ratio_to_ours=ours / taken,
            )
        )
    return rows


def passes_per_block(
    requests: Sequence[Request], completions: Sequence[Completion], block_size: int
) -> float:
    """Denoising and commit passes of all requests, divided by the blocks that they filled."""
    layout, passes, blocks = BlockLayout(block_size), 0, 0
    for request, completion in zip(requests, completions, strict=True):
        first, last = layout.span(len(request.prompt_ids), len(completion.response_ids))
        blocks += (last - first) // block_size
        passes += completion.passes.denoising + completion.passes.commit
    return passes / blocks


def needed_passes(request: Request, completion: Completion, block_size: int) -> list[Load]:
    """What one request needs: a pass for each denoising step.

    Its block runs through the model, and in the block's first step the finished tokens that the
    cache lacks; only masked positions need logits.
    """
    prompt = len(request.prompt_ids)
    first, last = BlockLayout(block_size).span(prompt, len(completion.step_map))
    out, stored = [], 0
    for block in range(first, last, block_size):
        end = block + block_size
        own = completion.step_map[max(block - prompt, 0) : end - prompt]
        for step in range(max(own) + 1):
            pairs = sum(block_size * (b + block_size) for b in range(stored, end, block_size))
            masked = sum(s >= step for s in own)
            out.append(Load(end - stored, pairs, masked, stored))
            stored = block
    return out


def lockstep(passes: Sequence[Sequence[Load]], batch: int) -> list[Load]:
    """The passes of batches of `batch` requests that run in lockstep, without any padding."""
    return [
        sum(filter(None, together), Load())
        for number in range(0, len(passes), batch)
        for together in zip_longest(*passes[number : number + batch])
    ]
