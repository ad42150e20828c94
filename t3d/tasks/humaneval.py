"""HumanEval: 164 functions to complete (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

from typing import ClassVar

from t3d.tasks.benchmark import CodeBenchmark, Splits
from t3d.tasks.protocols import CODE_HEADER
from t3d.tasks.records import Needs, Record


class HumanEval(CodeBenchmark):
    """Standard: the published prompt is the prefix, to be completed, and the tests are its own."""

    name = "humaneval"
    splits: ClassVar[Splits] = {"test": ("humaneval.jsonl", slice(None))}

    standard_needs: ClassVar[Needs] = {
        "entry_point": str,
        "meta.raw_prompt": str,
        "meta.raw_test": str,
        "meta.canonical_solution": str,
    }

    def prefix(self, record: Record) -> str:
        return CODE_HEADER + record.meta["raw_prompt"]

    def worked_answer(self, record: Record, prefix: str) -> str | None:
        solution = record.meta.get("canonical_solution")
        return solution and f"{solution}```"

    def tests(self, record: Record) -> tuple[str, list[str]]:
        return "", [f"{record.meta['raw_test']}\ncheck({record.entry_point})"]
