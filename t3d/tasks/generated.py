"""What the generated benchmarks share: streams of problems, their splits and their strict grading.

A problem is a pure function of (seed, task, number). The splits cannot overlap: a problem
belongs to the split that the hash of its question names.

Questions and worked answers draw their names from the lists below, which all generated tasks
share, so that a name out of place is seen whichever task it comes from.
"""

from __future__ import annotations

import hashlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice, product

from t3d.core.ranges import check_number
from t3d.core.rng import derive_key
from t3d.tasks.base import Example, Grade, Split

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lucy", "Max", "Eva")
ITEMS = ("apples", "books", "coins", "cards", "shells", "stamps", "pens", "beads")
EVENTS = ("class", "game", "party", "trip", "test", "concert", "picnic", "race")
WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MAX_PROBLEMS = 10**7
"""Largest number of problems of one call, which holds them all in memory."""
NUM_STEPS = ((2, 3, 4, 5), (0.3, 0.3, 0.25, 0.15))
"""How many steps a problem may have, and how often."""
EQUATION = ("{a} {op} {k} = {b}", "{a} {op} {k}, so {b}", "{a} {op} {k}, making {b}")
_READ_EQUATION = re.compile(r"(\w+) ([-+*]) (\w+)(?: =|, so|, making) (\w+)")
_WORDS = re.compile(rf"\b(?:{'|'.join((*NAMES, *ITEMS, *EVENTS, *WEEK))})\b")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_SHARES: dict[Split, range] = {"test": range(0, 2), "dev": range(2, 4), "train": range(4, 32)}
"""Thirty-seconds of the question hashes that a split owns."""


def _split_of(question: str) -> Split:
    bucket = hashlib.blake2b(question.encode(), digest_size=1).digest()[0] % 32
    return next(split for split, share in _SHARES.items() if bucket in share)


class GeneratedTask(ABC):
    """A benchmark whose problems are made by a program."""

    name: str
    things: tuple[str, ...]
    """What its problems are about."""

    @abstractmethod
    def problem(self, rng: random.Random) -> tuple[str, str, str]:
        """Question, worked answer, final answer."""

    @abstractmethod
    def reads(self, sentences: Sequence[str], name: str, thing: str) -> bool:
        """Whether the sentences make a problem about this person and this one of `things`."""

    def is_problem(self, question: str) -> bool:
        """Whether the generator makes this very question."""
        sentences = re.split(r"(?<=\.) ", question)
        return len(sentences) - 2 in NUM_STEPS[0] and any(
            self.reads(sentences, name, thing) for name, thing in product(NAMES, self.things)
        )

    @abstractmethod
    def holds(self, a: str, op: str, k: str, b: str) -> bool:
        """Whether the equation `a op k = b` is true; False where it means nothing."""

    def stream(self, split: Split, *, seed: int = 0) -> Iterator[Example]:
        """An endless stream of the split's problems, without repetition."""
        seen: set[str] = set()
        number = 0
        while True:
            rng = random.Random(derive_key(seed, self.name, number))
            number += 1
            question, reference, answer = self.problem(rng)
            if _split_of(question) == split and question not in seen:
                seen.add(question)
                name = f"{self.name}/{split}/{seed}/{len(seen) - 1}"
                yield Example(name, question, answer, reference)

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        check_number(f"problems of {self.name}", num, f"[0, {MAX_PROBLEMS}]", whole=True)
        return list(islice(self.stream(split, seed=seed), num))

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        """Correct if the last \\boxed{} holds the gold answer and the response is faithful.

        `string_correct` is the first half of that, the rule of the final answer alone.
        """
        return [
            self._grade(example, output) for example, output in zip(examples, outputs, strict=True)
        ]

    def _grade(self, example: Example, output: str) -> Grade:
        boxes = _BOXED.findall(output)
        final = boxes[-1].strip() if boxes else None
        right = final is not None and final == example.answer
        fault = self.fault(example, output)
        return Grade(
            right and fault is None,
            final,
            string_correct=right,
            faithful=fault is None,
            reason=fault if right else None,
        )

    def fault(self, example: Example, output: str) -> str | None:
        """What makes a response unfaithful; None if it is faithful.

        A faithful response names no person, thing or day that neither the question nor its worked
        answer names, and every arithmetic sign in it belongs to a whole and true equation.
        """
        known = set(_WORDS.findall(f"{example.question} {example.reference or ''}"))
        foreign = next((word for word in _WORDS.findall(output) if word not in known), None)
        if foreign is not None:
            return f"names {foreign}"
        for equation in _READ_EQUATION.finditer(output):
            if not self.holds(*equation.groups()):
                return f"says {equation[0]}"
        rest = _READ_EQUATION.sub("", output)
        return "has a broken equation" if re.search(r"[-+*=]", rest) else None
