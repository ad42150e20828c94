"""Settings of the measurement of risk and total correlation."""

from __future__ import annotations

from dataclasses import dataclass

from t3d.core.ranges import check_ranges


@dataclass(frozen=True)
class AnalysisConfig:
    """Settings of the measurement of risk and total correlation.

    Args:
        num_states: visited states, at most one a trajectory.
        num_samples: full-step completions drawn from each state.
        noise_levels: masked shares of a block in its states, each measured and then their mean; 1
            is the state before the first step.
        exact: enumerate all completions instead, for vocabularies of up to 16 and blocks of 4.
        batch_size: blocks in one forward pass.
        seed: seed of states, completions and intervals.
    """

    num_states: int = 64
    num_samples: int = 64
    noise_levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    exact: bool = False
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "[2, inf)": "num_states num_samples",
                "[1, inf)": "batch_size",
                "(0, 1]": "noise_levels",
                "(-inf, inf)": "seed",
            },
        )
        levels = self.noise_levels
        if not levels or len(set(levels)) < len(levels):
            raise ValueError(
                f"noise_levels must name at least one level, and each once, got {list(levels)}"
            )
