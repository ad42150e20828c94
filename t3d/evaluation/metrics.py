"""Statistics of gradings and completions, as pure functions. Fields are named as in `ResultRow`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from t3d.decoding.request import Completion


def wilson_interval(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson, 1927), both ends in [0, 1].

    Raises:
        ValueError: if nothing was graded or `correct` is no count out of `n`.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"an interval needs 0 <= correct <= n and n >= 1, got {correct} of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = correct / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # Both ends are set where they are exactly 0 or 1; rounding would give 1e-18.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class DecodingMetrics:
    """Counts of tokens and passes over completions; see `ResultRow` for the fields."""

    tokens_per_forward: float
    tokens_per_pass: float
    passes: int
    average_steps: float
    average_length: float
    truncated: float
    tokens_computed: int | None
    accepted: float | None


def decoding_metrics(completions: Sequence[Completion]) -> DecodingMetrics:
    """Summarise completions; tokens count up to and including the stop token.

    Raises:
        ValueError: if there are no completions.
    """
    if not completions:
        raise ValueError("decoding metrics need at least one completion, got none")
    num = len(completions)
    tokens = sum(completion.num_response_tokens for completion in completions)
    denoising = sum(completion.passes.denoising for completion in completions)
    passes = sum(completion.passes.total for completion in completions)
    drafted = sum(completion.passes.drafted for completion in completions)
    accepted = sum(completion.passes.accepted for completion in completions)
    assert denoising > 0, "a completion without denoising passes was not decoded"
    return DecodingMetrics(
        tokens_per_forward=tokens / denoising,
        tokens_per_pass=tokens / passes,
        passes=passes,
        average_steps=denoising / num,
        average_length=tokens / num,
        truncated=sum(completion.finish_reason == "length" for completion in completions) / num,
        tokens_computed=sum(completion.passes.tokens for completion in completions),
        accepted=accepted / drafted if drafted else None,
    )
