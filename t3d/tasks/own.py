"""A user's own questions as a task."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from t3d.grading.math import first_unfit_gold, last_boxed
from t3d.tasks.base import Example, Grade, Split
from t3d.tasks.benchmark import grade_math
from t3d.tasks.prompts import numbered_prompts
from t3d.tasks.protocols import ProtocolName, t3d_math

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

    The protocol `t3d` puts them as the authors put math problems.
    """

    def __init__(self, path: Path, protocol: ProtocolName = "standard") -> None:
        """Raises: ValueError as `numbered_prompts` does, and for a question of two splits."""
        self._path = path
        self._files = split_files(path) or dict.fromkeys(_SPLITS, path)
        read = {file: numbered_prompts(file) for file in dict.fromkeys(self._files.values())}
        owners: dict[str, str] = {}
        for file, rows in read.items():
            here = {
                example.question: f"{file.name}, line {number}" for number, example in rows.items()
            }
            both = next((question for question in here if question in owners), None)
            if both is not None:
                raise ValueError(
                    f"{path}: {here[both]}, asks what {owners[both]}, asks; "
                    "splits share no question"
                )
            owners |= here
        # Many files have one name, but results are told apart by their task's: by its problems.
        problems = read[[*self._files.values()][-1]].values()
        seen = [[e.question, e.answer, e.grader] for e in problems]
        digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:8]
        self.name = f"{path.resolve().name}@{digest}"
        self._rows = {split: read[file] for split, file in self._files.items()}
        if protocol == "t3d":
            self._rows = {
                split: {n: replace(e, verbatim=t3d_math(e.question)) for n, e in rows.items()}
                for split, rows in self._rows.items()
            }

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        """Raises: ValueError if a problem to evaluate has no answer, or one that is never right."""
        if split not in self._rows:
            raise ValueError(f"{self._path}: has no {split}.jsonl; put the split's questions there")
        rows = self._rows[split]
        chosen = list(rows.values())[:num]
        if split == "train":
            return chosen
        file = self._files[split]
        without = next((example.id for example in chosen if example.answer is None), None)
        if without is not None:
            raise ValueError(
                f"{file}: {without!r} has no answer to grade against; "
                "give every line the key 'answer'"
            )
        by_math = [number for number, example in enumerate(chosen) if _is_math(example)]
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
        """Correct if the last \\boxed{} holds the gold answer.

        By an example's `grader`: `math` if mathematically equal, `exact` if the same text but for
        blanks and a \\text{} around it. Without one, numbers are compared by `math`, all else is
        `exact`: to mathematics `on` and `no` are one product, and a date is a difference.
        """
        by_math = [_is_math(example) for example in examples]
        pairs = zip(examples, outputs, by_math, strict=True)
        chosen = [(example, output) for example, output, is_math in pairs if is_math]
        math = iter(grade_math([e for e, _ in chosen], [output for _, output in chosen]))
        pairs = zip(examples, outputs, by_math, strict=True)
        return [next(math) if is_math else _grade_exact(e, output) for e, output, is_math in pairs]


def _is_math(example: Example) -> bool:
    if example.grader is not None:
        return example.grader == "math"
    return example.answer is not None and _NUMBER.fullmatch(example.answer.strip()) is not None


def _grade_exact(example: Example, output: str) -> Grade:
    final = last_boxed(output)
    correct = None not in (final, example.answer) and _plain(final) == _plain(example.answer)
    return Grade(correct, final, correct)


def _plain(text: str | None) -> str:
    assert text is not None
    whole = _TEXT.fullmatch(text.strip())
    return " ".join((whole[1] if whole else text).split())
