"""A user's own questions as a task."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, get_args

from t3d.grading.math import first_unfit_gold, last_boxed
from t3d.tasks.base import Domain, Example, Grade, Grader, Split
from t3d.tasks.benchmark import grade_code, grade_math
from t3d.tasks.prompts import numbered_prompts
from t3d.tasks.protocols import ProtocolName, code_turn, last_block, t3d_code, t3d_math

_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?(/\d+)?\s*%?", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\{([^{}]*)\}")
_SPLITS: tuple[Split, ...] = get_args(Split)
"""Test comes last."""


def split_files(folder: Path) -> dict[Split, Path]:
    """The files of a folder by their splits; none where it holds no task."""
    found: dict[Split, Path] = {split: folder / f"{split}.jsonl" for split in _SPLITS}
    return {split: file for split, file in found.items() if file.is_file()}


class OwnQuestions:
    """The questions of a folder, whose train.jsonl, dev.jsonl and test.jsonl are the splits.

    Of a single .jsonl every split is the whole file. Training prompts need no answers, problems
    to evaluate do.

    The protocol `t3d` puts them as the authors put math and programming problems. In the standard
    one a question for an answer is the user's turn as it stands, one for a program is told where
    to put it.
    """

    def __init__(
        self, path: Path, protocol: ProtocolName = "standard", *, unsafe_exec: bool = False
    ) -> None:
        """Raises: ValueError as `numbered_prompts` does, and for a question of two splits."""
        self._path = path
        self._unsafe_exec = unsafe_exec
        self._files = split_files(path) or dict.fromkeys(_SPLITS, path)
        read = {file: numbered_prompts(file) for file in dict.fromkeys(self._files.values())}
        owners: dict[str, tuple[Path, int]] = {}
        for file, rows in read.items():
            for number, example in rows.items():
                owner, line = owners.setdefault(example.asks, (file, number))
                # Training may see a question twice; an evaluation would count it twice.
                if owner != file or (line != number and file.stem in ("dev", "test")):
                    raise ValueError(
                        f"{path}: {file.name}, line {number}, asks what {owner.name}, line {line}, "
                        "asks; drop one of them"
                    )
        # Many files have one name, but results are told apart by their task's: by its problems.
        problems = read[[*self._files.values()][-1]].values()
        seen = [
            [e.question, e.answer, e.grader, *([asdict(e.program)] if e.program else [])]
            for e in problems
        ]
        digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:8]
        self.name = f"{path.resolve().name}@{digest}"
        self._rows = {
            split: {number: _put(e, protocol) for number, e in read[file].items()}
            for split, file in self._files.items()
        }

    def domains(self) -> set[Domain]:
        """What the problems to evaluate ask for."""
        return {example.domain for example in [*self._rows.values()][-1].values()}

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        """Raises: ValueError if a problem to evaluate has no answer, one that is never right, or no
        tests."""
        if split not in self._rows:
            raise ValueError(f"{self._path}: has no {split}.jsonl; put the split's questions there")
        rows = self._rows[split]
        chosen = list(rows.values())[:num]
        if split == "train":
            return chosen
        file = self._files[split]
        for number, example in zip(rows, chosen, strict=False):
            if example.domain == "code" and example.program is None:
                raise ValueError(
                    f"{file}, line {number}: has nothing to grade a program by; "
                    "give it 'tests', or 'test_input' and 'test_output'"
                )
            if example.domain == "math" and example.answer is None:
                raise ValueError(
                    f"{file}, line {number}: has no answer to grade against; give it the key "
                    "'answer', or the 'domain' code and 'tests' if it asks for a program"
                )
        by_math = [number for number, example in enumerate(chosen) if _grader(example) == "math"]
        first = first_unfit_gold(tuple(str(chosen[number].answer) for number in by_math))
        if first is not None:
            unfit = by_math[first]
            raise ValueError(
                f"{file}, line {list(rows)[unfit]}: the answer "
                f"{chosen[unfit].answer!r} is not equal to itself as mathematics, so every answer "
                "would be wrong; correct it, or give the line the key 'grader' with the value "
                "'exact'"
            )
        return chosen

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        """Correct if the last \\boxed{} holds the gold answer, or the last closed ```python block,
        which the prefix may open, a program that passes its tests.

        By an example's `grader`: `math` if mathematically equal, `exact` if the same text but for
        blanks and a \\text{} around it. Without one, numbers are compared by `math`, all else is
        `exact`: to mathematics `on` and `no` are one product, and a date is a difference.
        """
        kinds = [_grader(example) for example in examples]
        found: dict[int, Grade] = {}
        graders = {"math": grade_math, "exact": _grade_exact, "code": self._grade_code}
        for name, grade in graders.items():
            own = [number for number, kind in enumerate(kinds) if kind == name]
            grades = grade([examples[i] for i in own], [outputs[i] for i in own])
            found |= zip(own, grades, strict=True)
        return [found[number] for number in range(len(examples))]

    def _grade_code(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        pairs = zip(examples, outputs, strict=True)
        programs = [last_block(example.prefix + output) for example, output in pairs]
        jobs = [example.program for example in examples]
        return grade_code(programs, jobs, unsafe_exec=self._unsafe_exec)


def _put(example: Example, protocol: ProtocolName) -> Example:
    """A question as a protocol puts it."""
    is_t3d, question = protocol == "t3d", example.question
    if example.domain == "math":
        return replace(example, verbatim=t3d_math(question)) if is_t3d else example
    stdio = example.program is not None and bool(example.program.cases)
    return replace(
        example,
        question=code_turn(question, stdio=stdio),
        verbatim=t3d_code(question, example.prefix, stdio=stdio) if is_t3d else None,
    )


def _grader(example: Example) -> Grader | Literal["code"]:
    if example.domain == "code":
        return "code"
    is_number = example.answer is not None and _NUMBER.fullmatch(example.answer.strip())
    return example.grader or ("math" if is_number else "exact")


def _grade_exact(examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
    return [_exact(example, output) for example, output in zip(examples, outputs, strict=True)]


def _exact(example: Example, output: str) -> Grade:
    final = last_boxed(output)
    correct = None not in (final, example.answer) and _plain(final) == _plain(example.answer)
    return Grade(correct, final, correct)


def _plain(text: str | None) -> str:
    assert text is not None
    whole = _TEXT.fullmatch(text.strip())
    return " ".join((whole[1] if whole else text).split())
