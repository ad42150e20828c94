"""What the benchmarks of a data folder share: splits, prompts and grading by records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from t3d.grading.code import Program, grade_programs
from t3d.tasks.base import Example, Grade, Split
from t3d.tasks.data import load_records
from t3d.tasks.protocols import (
    ProtocolName,
    code_turn,
    last_block,
    math_turn,
    open_block,
    t3d_code,
    t3d_math,
)
from t3d.tasks.records import Needs, Record

Splits = Mapping[Split, tuple[str, slice]]
"""Which part of which file a split is."""


class Benchmark(ABC):
    """Problems of a data folder, whose files are read when they are first needed."""

    name: str
    splits: ClassVar[Splits]

    def __init__(
        self, data: Path | None, protocol: ProtocolName, *, unsafe_exec: bool = False
    ) -> None:
        """
        Args:
            data: the user's data folder; None for the downloaded one.
            protocol: how problems are put.
            unsafe_exec: run programs without the sandbox.
        """
        self.data = data
        self.protocol: ProtocolName = protocol
        self.unsafe_exec = unsafe_exec
        self._files: dict[str, list[Record]] = {}

    @abstractmethod
    def needs(self) -> Needs:
        """What the protocol reads of a record beyond the schema."""

    def _records(self, file: str) -> list[Record]:
        if file not in self._files:
            self._files[file] = load_records(file, self.data, self.needs())
        return self._files[file]

    def records(self, split: Split) -> list[Record]:
        """Raises: ValueError for a split that the benchmark does not have."""
        if split not in self.splits:
            raise ValueError(
                f"{self.name} has no split {split!r}, only {', '.join(self.splits)}; "
                "take the prompts of another task or a .jsonl of your own"
            )
        file, part = self.splits[split]
        return self._select(self._records(file), part)

    def _select(self, records: list[Record], part: slice) -> list[Record]:
        return records[part]

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        """The split in its published order, whatever the seed; all of it if `num` is beyond."""
        return [self.example(record) for record in self.records(split)[:num]]

    @abstractmethod
    def example(self, record: Record) -> Example: ...

    @abstractmethod
    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]: ...


class MathBenchmark(Benchmark):
    """A final answer in \\boxed{}."""

    def needs(self) -> Needs:
        return {"answer": str}

    def example(self, record: Record) -> Example:
        return Example(
            record.id,
            math_turn(record.question),
            record.answer,
            self.worked_answer(record),
            verbatim=t3d_math(record.question) if self.protocol == "t3d" else None,
        )

    def worked_answer(self, record: Record) -> str | None:
        return record.reference

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        return grade_math(examples, outputs)


def grade_math(examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
    """Correct if the last \\boxed{} is mathematically equal to the gold answer."""
    from t3d.grading.math import grade_answers

    verdicts = grade_answers(outputs, [example.answer for example in examples])
    return [
        Grade(v.correct, v.final_answer, v.string_correct, "timeout" if v.timed_out else None)
        for v in verdicts
    ]


class CodeBenchmark(Benchmark):
    """A program that passes its tests; the turn begins inside an open block.

    What the authors' protocol takes from a record is the same for all; `prefix` and `tests` are
    those of the standard one.
    """

    standard_needs: ClassVar[Needs]
    """What the standard protocol reads of a record."""

    def needs(self) -> Needs:
        own = {"prompt_prefix": str} if self.protocol == "t3d" else self.standard_needs
        return {"time_limit_s": int | float, **own}

    def example(self, record: Record) -> Example:
        is_t3d = self.protocol == "t3d"
        prefix = (record.prompt_prefix or "") if is_t3d else self.prefix(record)
        return Example(
            record.id,
            code_turn(self.question(record)),
            reference=self.worked_answer(record, prefix),
            prefix=prefix,
            verbatim=t3d_code(record.question, prefix) if is_t3d else None,
            domain="code",
            program=self._job(record),
        )

    def question(self, record: Record) -> str:
        return record.question

    @abstractmethod
    def prefix(self, record: Record) -> str:
        """How the assistant's turn begins."""

    @abstractmethod
    def worked_answer(self, record: Record, prefix: str) -> str | None:
        """The gold program as the rest of the turn, closing fence included; None without one."""

    @abstractmethod
    def tests(self, record: Record) -> tuple[str, list[str]]:
        """Python between program and tests, and the tests."""

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        """Those of `grade_code`."""
        programs = [
            last_block(example.prefix + output)
            if self.protocol == "t3d"
            else open_block(example.prefix, output)
            for example, output in zip(examples, outputs, strict=True)
        ]
        jobs = [example.program for example in examples]
        return grade_code(programs, jobs, unsafe_exec=self.unsafe_exec)

    def _job(self, record: Record) -> Program:
        assert record.time_limit_s is not None
        own = (record.test_setup, record.tests)
        setup, tests = own if self.protocol == "t3d" else self.tests(record)
        return Program("", tuple(tests), setup, float(record.time_limit_s))


def grade_code(
    programs: Sequence[str | None], jobs: Sequence[Program | None], *, unsafe_exec: bool
) -> list[Grade]:
    """Correct if a program passes its job's every test in time; the program is the final answer.

    Args:
        programs: what was read out of each response.
        jobs: tests without a program; None where there are none, and so nothing is correct.
    """
    both = zip(programs, jobs, strict=True)
    runs = [replace(job, program=text) for text, job in both if job and text is not None]
    verdicts = iter(grade_programs(runs, unsafe_exec=unsafe_exec))
    grades: list[Grade] = []
    for program, job in zip(programs, jobs, strict=True):
        if program is None:
            grades.append(Grade(False, None, reason="no closed ```python block"))
        elif job is None:
            grades.append(Grade(False, program))
        else:
            verdict = next(verdicts)
            reason = None if verdict.passed else verdict.reason
            grades.append(Grade(verdict.passed, program, reason=reason))
    return grades
