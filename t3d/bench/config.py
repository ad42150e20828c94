"""Settings of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from t3d.core.ranges import check_ranges
from t3d.decoding.config import DecodingConfig

DECODE, TRAIN = "decode.json", "train.json"
"""Names of the two files of measurements, in one folder."""
Device = Literal["auto", "cpu", "cuda"]
Shape = dict[str, Any] | str
Engine = Literal["t3d", "t3d_verified", "oracle"]
"""Engines: t3d, a pass for every step; t3d_verified, which drafts all steps of a block; oracle,
without a cache and with one request at a time."""


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of the decoding benchmark, in all of which every engine decodes.

    Args:
        engines: t3d, and to compare it with t3d_verified, which drafts all steps of a block, or
            oracle (on a CPU only).
        batch_sizes: requests that are decoded at the same time.
        denoising_steps: passes a block; each number is measured.
        block_size: tokens a block.
        prompt_tokens: the shortest and the longest prompt.
        new_tokens: response tokens of a request, all of which are decoded.
        num_requests: requests that are timed together; rounded up to whole batches.
        repeats: number of times that each measurement is made, with the engines taking turns; the
            median counts.
        seed: seed of the prompts.
    """

    engines: tuple[Engine, ...] = ("t3d", "t3d_verified")
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    denoising_steps: tuple[int, ...] = (1, 2, 4)
    block_size: int = 4
    prompt_tokens: tuple[int, int] = (40, 200)
    new_tokens: int = 64
    num_requests: int = 4
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.engines:
            if name not in get_args(Engine):
                known = ", ".join(get_args(Engine))
                raise ValueError(f"engines must name some of {known}, got {name!r}")
        if "t3d" not in self.engines:
            raise ValueError("engines must name t3d, which the others are compared with")
        # All requests are in memory before the first is decoded.
        held, counts = "batch_sizes num_requests", "denoising_steps block_size"
        counts += " prompt_tokens new_tokens repeats"
        check_ranges(self, {"[1, 65536]": held, "[1, inf)": counts, "(-inf, inf)": "seed"})
        if not self.batch_sizes:
            raise ValueError("batch_sizes is empty; name at least one size")
        if not self.denoising_steps:
            raise ValueError("denoising_steps is empty; name at least one number")
        for steps in self.denoising_steps:
            self.decoding(steps)
        first, last = self.prompt_tokens
        if first > last:
            raise ValueError(f"prompt_tokens must rise, got {first} to {last}")

    def decoding(self, denoising_steps: int) -> DecodingConfig:
        """The decoding setting with this number of steps a block."""
        return DecodingConfig(
            block_size=self.block_size,
            denoising_steps=denoising_steps,
            temperature=0.0,
            max_new_tokens=self.new_tokens,
        )
