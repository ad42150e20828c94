"""MATH500: 500 competition problems (Lightman et al. 2023, arXiv:2305.20050)."""

from __future__ import annotations

from typing import ClassVar

from t3d.tasks.benchmark import MathBenchmark, Splits


class MATH500(MathBenchmark):
    name = "math500"
    splits: ClassVar[Splits] = {"test": ("math500.jsonl", slice(None))}
