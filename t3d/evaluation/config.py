"""Settings of evaluation: the grid of decoding settings, and watching a student in training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from t3d.core.dtypes import Dtype
from t3d.core.ranges import WORKERS, check_choices, check_ranges
from t3d.decoding.config import DecodingConfig
from t3d.tasks import ProtocolName, Task, get_task

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
        measure_latency: decode a few problems at batch 1 for each setting; in a run with several
            workers for dynamic settings only, which then have the machine to themselves.
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
class GridConfig(EvaluationConfig):
    """A grid of settings on a benchmark, for one checkpoint: `t3d eval` and `t3d calibrate`.

    Args:
        task: the benchmark, or a .jsonl of your own, or a folder with one for every split, such as
            test.jsonl: question, answer, which a response is to hold in \\boxed{}, and how they
            are compared, grader: exact or math; by default math for numbers.
        data: folder of the benchmark's files; by default what `t3d data download` fetched.
        protocol: standard, or t3d for the prompts and tests of T3D's authors byte for byte.
        num_problems: evaluated problems at most.
        max_new_tokens: replaces that of every setting.
        dtype: number format of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU.
        num_workers: processes that decode at the same time, one a GPU where there are GPUs.
        unsafe_exec: run the programs of code benchmarks without the sandbox.
    """

    task: str = "mini_gsm"
    data: Path | None = None
    protocol: ProtocolName = "standard"
    num_problems: int = 500
    max_new_tokens: int | None = None
    dtype: Dtype = "auto"
    num_workers: int = 1
    unsafe_exec: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"[1, inf)": "num_problems max_new_tokens", WORKERS: "num_workers"})
        check_choices(self, "dtype")

    @property
    def grid(self) -> tuple[DecodingConfig, ...]:
        """The settings, with `max_new_tokens` applied."""
        if self.max_new_tokens is None:
            return self.settings
        return tuple(replace(s, max_new_tokens=self.max_new_tokens) for s in self.settings)

    def benchmark(self) -> Task:
        """The task.

        Raises:
            ValueError: for an unknown one, or options that it does not take.
        """
        options: dict[str, Any] = {"data": self.data, "unsafe_exec": self.unsafe_exec}
        return get_task(self.task, protocol=self.protocol, **options)


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
