"""A user's own questions as a task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from t3d.grading.math import first_unfit_gold
from t3d.tasks.base import Example, Grade, Split
from t3d.tasks.benchmark import grade_math
from t3d.tasks.prompts import numbered_prompts
from t3d.tasks.protocols import ProtocolName, t3d_math

_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?(/\d+)?\s*%?", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\{([^{}]*)\}")


class OwnQuestions:
    """The questions of a .jsonl, as they stand there; every split is the whole file.

    Training prompts need no answers, problems to evaluate do.

    The protocol `t3d` puts them as the authors put math problems.
    """

    def __init__(self, path: Path, protocol: ProtocolName = "standard") -> None:
        """Raises: ValueError as `numbered_prompts` does."""
        self.name = path.name
        self._path = path
        self._lines, self._examples = zip(*numbered_prompts(path), strict=True)
        if protocol == "t3d":
            self._examples = tuple(
                replace(e, verbatim=t3d_math(e.question)) for e in self._examples
            )

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        """Raises: ValueError if a problem to evaluate has no answer, or one that is never right."""
        chosen = list(self._examples[:num])
        if split == "train":
            return chosen
        without = next((example.id for example in chosen if example.answer is None), None)
        if without is not None:
            raise ValueError(
                f"{self.name}: {without!r} has no answer to grade against; "
                "give every line the key 'answer'"
            )
        by_math = [number for number, example in enumerate(chosen) if _is_math(example)]
        first = first_unfit_gold(tuple(str(chosen[number].answer) for number in by_math))
        if first is not None:
            unfit = by_math[first]
            raise ValueError(
                f"{self._path}, line {self._lines[unfit]}: the answer {chosen[unfit].answer!r} is "
                "not equal to itself as mathematics, so every answer would be wrong; correct it, "
                "or give the line the key 'grader' with the value 'exact'"
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
    from t3d.grading.math import last_boxed

    final = last_boxed(output)
    correct = None not in (final, example.answer) and _plain(final) == _plain(example.answer)
    return Grade(correct, final, correct)


def _plain(text: str | None) -> str:
    assert text is not None
    whole = _TEXT.fullmatch(text.strip())
    return " ".join((whole[1] if whole else text).split())
