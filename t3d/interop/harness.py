"""Settings of an evaluation by lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t3d.core.dtypes import Dtype
from t3d.core.ranges import check_ranges
from t3d.decoding.config import DecodingConfig


@dataclass(frozen=True)
class HarnessConfig:
    """Settings of an evaluation by lm-evaluation-harness.

    Args:
        tasks: names of the harness's generative tasks, groups and tags, or task YAML files.
        decoding: how answers are decoded; a task's own length and temperature take precedence.
        batch_size: problems decoded at the same time.
        dtype: number format of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU.
        limit: problems of each task at most; below 1, a share of them.
        num_fewshot: examples in the prompt; by default the task's own number.
        include_path: folder with task files of your own.
        apply_chat_template: whether prompts go through the model's chat template.
        gen_kwargs: generation parameters that win over the tasks' own.
        log_samples: keep every prompt and answer in lm_eval_samples.json.
        confirm_run_unsafe_code: for tasks that run generated programs, outside our sandbox.
        seed: of candidate sampling, and of the harness's few-shot examples.
    """

    tasks: list[str]
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    batch_size: int = 32
    dtype: Dtype = "auto"
    limit: int | float | None = None
    num_fewshot: int | None = None
    include_path: Path | None = None
    apply_chat_template: bool = True
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    log_samples: bool = False
    confirm_run_unsafe_code: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "[1, inf)": "batch_size",
                "(0, inf)": "limit",
                "[0, inf)": "num_fewshot",
                "(-inf, inf)": "seed",
            },
        )
