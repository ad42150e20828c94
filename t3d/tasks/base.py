"""What a benchmark is: prompts, and a rule that grades an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from t3d.grading.code import Program

Split = Literal["train", "dev", "test"]
Grader = Literal["exact", "math"]
Domain = Literal["math", "code"]
"""What is asked for: a final answer, or a program."""


@dataclass(frozen=True)
class Example:
    """One problem."""

    id: str
    """Unique within the task and stable."""
    question: str
    """The user's turn, as given to the chat template."""
    answer: str | None = None
    """The gold final answer, where known."""
    reference: str | None = None
    """A worked answer, where known; only labelled training reads it."""
    prefix: str = ""
    """How the assistant's turn begins; the model goes on from there."""
    verbatim: str | None = None
    """The whole prompt as text, for a benchmark that fixes it; the chat template is not used."""
    grader: Grader | None = None
    """How the answer to a question of one's own is compared; see `OwnQuestions.grade`."""
    domain: Domain = "math"
    program: Program | None = None
    """What grades the program that the question asks for; its source is empty."""

    @property
    def asks(self) -> str:
        """The question without what two tellings of it may differ in: case, blanks and lines."""
        return " ".join(self.question.casefold().split())


@dataclass(frozen=True)
class Grade:
    """The verdict on one output."""

    correct: bool
    """The headline verdict; of a generated task, that the answer is right and `faithful`."""
    final_answer: str | None
    """What was graded; None where the output gives no final answer."""
    string_correct: bool | None = None
    """The verdict of a plain comparison of strings beside `correct`; None where there is none."""
    reason: str | None = None
    """Why it is wrong, where the grader knows more than that: `timeout`, an error's name,
    what makes it unfaithful."""
    faithful: bool | None = None
    """Whether the response speaks of what the question does, in true equations; None where that
    is not graded."""


class Task(Protocol):
    """A benchmark."""

    name: str

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        """The first `num` examples of a split; deterministic in (split, seed)."""
        ...

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        """Grade the decoded text of each response (prefix and stop token excluded)."""
        ...
