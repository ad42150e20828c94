"""What a benchmark is: prompts, and a rule that grades an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Split = Literal["train", "dev", "test"]


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


@dataclass(frozen=True)
class Grade:
    """The verdict on one output."""

    correct: bool
    final_answer: str | None
    """What was graded; None where the output gives no final answer."""


class Task(Protocol):
    """A benchmark."""

    name: str

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        """The first `num` examples of a split; deterministic in (split, seed)."""
        ...

    def grade(self, example: Example, output: str) -> Grade:
        """Grade the decoded text of a response (stop token excluded)."""
        ...
