"""A user's own questions as a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from t3d.grading.math import first_unfit_gold
from t3d.tasks.base import Example, Grade, Split
from t3d.tasks.benchmark import grade_math
from t3d.tasks.prompts import numbered_prompts
from t3d.tasks.protocols import ProtocolName, t3d_math


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
        unfit = first_unfit_gold(tuple(str(example.answer) for example in chosen))
        if unfit is not None:
            raise ValueError(
                f"{self._path}, line {self._lines[unfit]}: the answer {chosen[unfit].answer!r} is "
                "not equal to itself as mathematics, so every answer would be wrong; correct it"
            )
        return chosen

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        """As math is graded."""
        return grade_math(examples, outputs)
