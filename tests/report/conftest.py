from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from t3d.decoding.config import DYNAMIC, STATIC
from t3d.evaluation.results import ResultRow
from tests.row import make_row

METHODS = ("zebra", "t3d", "naive_td", "original", "dparallel", "sft", "redi", "alpha")


def _row(method: str, seed: int, block_size: int, steps: int, dynamic: bool, n: int) -> ResultRow:
    rng = random.Random(f"{method} {seed} {block_size} {steps} {dynamic}")
    correct = rng.randrange(n + 1)
    return make_row(
        correct,
        n,
        task="mini_gsm",
        method=method,
        seed=seed,
        model=f"runs/checkpoints/{method}",
        block_size=block_size,
        remasking=DYNAMIC if dynamic else STATIC,
        denoising_steps=steps,
        tokens_per_forward=rng.uniform(0.9, 4),
        tokens_per_pass=rng.uniform(0.9, 4),
        passes=rng.randrange(10_000),
        average_steps=rng.uniform(10, 200),
        average_length=rng.uniform(10, 900),
        truncated=rng.random(),
        agreement=None if method == "original" else rng.random(),
        tokens_per_second=rng.uniform(10, 9999),
        latency_seconds=None if dynamic else rng.uniform(0.01, 2),
        optimizer_steps=rng.randrange(5_000),
        tokens_seen=rng.randrange(10_000_000),
    )


@pytest.fixture
def make_rows() -> Callable[..., list[ResultRow]]:
    """Rows in no useful order: static at full, half and one step, and dynamic."""

    def make(
        methods: tuple[str, ...] = METHODS,
        seeds: tuple[int, ...] = (0,),
        block_sizes: tuple[int, ...] = (4,),
        n: int = 500,
    ) -> list[ResultRow]:
        rows = [
            _row(method, seed, size, steps, dynamic, n)
            for method in methods
            for seed in seeds
            for size in block_sizes
            for steps, dynamic in ((1, False), (size, True), (size, False), (size // 2, False))
        ]
        random.Random(0).shuffle(rows)
        return rows

    return make
