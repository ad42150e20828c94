"""Settings of evaluation: the grid of decoding settings, and watching a student in training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from t3d.core.ranges import check_ranges
from t3d.decoding.config import DecodingConfig

Speed = Literal["tokens_per_forward", "tokens_per_second"]
"""Field of `ResultRow` that measures speed when settings are compared."""


def _settings() -> tuple[DecodingConfig, ...]:
    static = (DecodingConfig(denoising_steps=steps, max_new_tokens=96) for steps in (4, 2, 1))
    return *static, DecodingConfig(remasking="low_confidence_dynamic", max_new_tokens=96)


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of an evaluation.

    Args:
        settings: the grid; the first is full-step and defines `agreement`.
        batch_size: problems decoded at the same time.
        seed: seed of candidate sampling.
        measure_latency: decode a few problems at batch 1 for each setting.
        num_shown: problems whose trajectories the report shows.
    """

    # A tuple, because jsonargparse would merge a user's list with the default list item by item.
    settings: tuple[DecodingConfig, ...] = field(default_factory=_settings)
    batch_size: int = 250
    seed: int = 0
    measure_latency: bool = True
    num_shown: int = 3

    def __post_init__(self) -> None:
        if not self.settings:
            raise ValueError("evaluation: settings is empty; name at least one decoding setting")
        check_ranges(
            self,
            {"[1, inf)": "batch_size", "[0, inf)": "num_shown", "(-inf, inf)": "seed"},
            where="evaluation: ",
        )


@dataclass(frozen=True)
class WatchConfig:
    """Settings of evaluating a student while it trains.

    Args:
        every: optimizer steps between evaluations; the last step is always evaluated.
        num_problems: evaluated problems.
        decoding: the setting that is watched.
    """

    every: int = 100
    num_problems: int = 64
    decoding: DecodingConfig = field(default_factory=lambda: DecodingConfig(denoising_steps=2))

    def __post_init__(self) -> None:
        check_ranges(self, {"[1, inf)": "every num_problems"}, where="watch: ")
