"""HumanEval: 164 functions to complete (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

from typing import ClassVar

from t3d.tasks.benchmark import CodeBenchmark, Splits
from t3d.tasks.protocols import CODE_HEADER, ProtocolName
from t3d.tasks.records import Needs, Record

_NEEDS: dict[ProtocolName, Needs] = {
    "t3d": {"time_limit_s": int | float, "prompt_prefix": str},
    "standard": {
        "time_limit_s": int | float,
        "entry_point": str,
        "meta.raw_prompt": str,
        "meta.raw_test": str,
        "meta.canonical_solution": str,
    },
}


class HumanEval(CodeBenchmark):
    """Standard: the published prompt is the prefix, to be completed, and the tests are its own."""

    name = "humaneval"
    splits: ClassVar[Splits] = {"test": ("humaneval.jsonl", slice(None))}

    def needs(self) -> Needs:
        return _NEEDS[self.protocol]

    def prefix(self, record: Record) -> str:
        if self.protocol == "t3d":
            return record.prompt_prefix or ""
        return CODE_HEADER + record.meta["raw_prompt"]

    def worked_answer(self, record: Record, prefix: str) -> str | None:
        solution = record.meta.get("canonical_solution")
        return solution and f"{solution}```"

    def tests(self, record: Record) -> tuple[str, list[str]]:
        if self.protocol == "t3d":
            return record.test_setup, record.tests
        return "", [f"{record.meta['raw_test']}\ncheck({record.entry_point})"]
