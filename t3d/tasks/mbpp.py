"""MBPP: 974 short programs (Austin et al. 2021, arXiv:2108.07732), and its sanitized edition."""

from __future__ import annotations

from typing import ClassVar

from t3d.tasks.benchmark import CodeBenchmark, Splits
from t3d.tasks.convert import called_function, code_prefix, continuation, with_first_test
from t3d.tasks.records import Needs, Record

NUM_DEV = 90
"""Problems that end the training file and are kept from training."""
NUM_SANITIZED_DEV = 43
"""Number of the published validation problems that the sanitized file contains."""


class MBPP(CodeBenchmark):
    """Standard: all 500, a prefix with the signature that the tests call, the three asserts.

    The authors lack the two problems whose program begins with a class, give the signature of a
    helper in 18 others, and add the challenge tests.
    """

    name = "mbpp"
    splits: ClassVar[Splits] = {
        "train": ("mbpp_train.jsonl", slice(None, -NUM_DEV)),
        "dev": ("mbpp_train.jsonl", slice(-NUM_DEV, None)),
        "test": ("mbpp_test.jsonl", slice(None)),
    }

    standard_needs: ClassVar[Needs] = {"meta.asserts": list, "meta.prompt_prefix_fixed": str}

    def needs(self) -> Needs:
        own = {"meta.in_t3d": bool} if self.protocol == "t3d" else {}
        return {**super().needs(), **own}

    def _select(self, records: list[Record], part: slice) -> list[Record]:
        # Cut first, so that no protocol trains on a dev problem of the other.
        chosen = records[part]
        if self.protocol == "t3d":
            return [record for record in chosen if record.meta["in_t3d"]]
        return chosen

    def prefix(self, record: Record) -> str:
        return record.meta["prompt_prefix_fixed"]

    def worked_answer(self, record: Record, prefix: str) -> str | None:
        if record.reference is None:
            return None
        return continuation(prefix, record.reference, holds_preamble=self.protocol == "t3d")

    def tests(self, record: Record) -> tuple[str, list[str]]:
        return record.test_setup, record.meta["asserts"]


class SanitizedMBPP(MBPP):
    """The problems that MBPP's authors verified by hand, with their edited texts and tests.

    Its dev problems are training problems of the full edition, whose dev problems it lacks.
    """

    name = "mbpp_sanitized"
    splits: ClassVar[Splits] = {
        "train": ("mbpp_train.jsonl", slice(None, -NUM_SANITIZED_DEV)),
        "dev": ("mbpp_train.jsonl", slice(-NUM_SANITIZED_DEV, None)),
        "test": ("mbpp_test.jsonl", slice(None)),
    }

    standard_needs: ClassVar[Needs] = {"meta.sanitized": dict | None}

    def _select(self, records: list[Record], part: slice) -> list[Record]:
        return [record for record in records if record.meta["sanitized"]][part]

    def question(self, record: Record) -> str:
        edited = record.meta["sanitized"]
        return with_first_test(edited["prompt"], edited["test_list"])

    def prefix(self, record: Record) -> str:
        edited = record.meta["sanitized"]
        function = called_function(edited["code"], edited["test_list"][0])
        return code_prefix(edited["code"], function, edited["prompt"])

    def worked_answer(self, record: Record, prefix: str) -> str:
        return continuation(prefix, record.meta["sanitized"]["code"], holds_preamble=False)

    def tests(self, record: Record) -> tuple[str, list[str]]:
        edited = record.meta["sanitized"]
        return "\n".join(edited["test_imports"]), edited["test_list"]
