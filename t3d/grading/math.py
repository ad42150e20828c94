r"""Final answers of mathematics: the last \boxed{}, compared with the gold answer.

There are two verdicts: `correct` is math-verify's, on what `quantities` reads; `string_correct` is
that of the comparison of strings which the authors of T3D use first, for numbers that are compared
with theirs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from t3d.grading import workers
from t3d.grading.quantities import is_one_number, one_number

MAX_WORKERS = 16
PAIRS_PER_WORKER = 100
"""Number of pairs for which another process is worth the second or two that it takes to start."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[^$\n]*")


@dataclass(frozen=True)
class MathVerdict:
    """The verdict on one output."""

    final_answer: str | None
    """Content of the last box; None where there is no closed one."""
    correct: bool
    """Whether the answer equals the gold answer by math-verify, units and scale words read
        before."""
    string_correct: bool
    """Whether the answer equals the gold answer by `string_match`."""
    timed_out: bool
    """Whether math-verify ran out of time; the answer then counts as wrong."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{} or \fbox{}, stripped; None without one or if it is open.

    Without braces, as in `\boxed 5`, it is the rest of the line or of the formula.
    """
    boxes = [match.end() for match in _BOX.finditer(text)]
    if not boxes:
        return None
    start = boxes[-1]
    if not text.startswith("{", start):
        rest = _UNBRACED.match(text, start)
        assert rest is not None
        return rest[0].strip().rstrip(".") or None
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()].strip()
    return None


def _brace_fractions(text: str) -> str | None:
    r"""`\frac12` and `\frac1{2}` as `\frac{1}{2}`; None after a bare `\frac`.

    The text stays as it is if a fraction has but one character.
    """
    head, *rest = text.split(r"\frac")
    parts = [head]
    for part in rest:
        if not part:
            return None
        if not part.startswith("{"):
            if len(part) < 2:
                return text
            denominator = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            part = f"{{{part[0]}}}{denominator}"
        parts.append(part)
    return r"\frac".join(parts)


def _normalise(text: str) -> str | None:
    """The normal form that `string_match` compares; None where there is none."""
    for dropped in ("\n", r"\!"):
        text = text.replace(dropped, "")
    text = text.replace("\\\\", "\\")
    text = re.sub("[td]frac", "frac", text)
    for dropped in (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$", "$", ","):
        text = text.replace(dropped, "")
    # Text after a blank is a unit.
    text, *units = text.split(r"\text{ ")
    if len(units) > 1:
        return None
    text = text.replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    name, *values = text.split("=")
    if len(values) == 1 and len(name) <= 2:
        text = values[0]
    if re.search(r"\\sqrt(\\sqrt|\Z)", text):
        return None
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    braced = _brace_fractions(text)
    if braced is None:
        return None
    if braced == "0.5":
        return r"\frac{1}{2}"
    return re.sub(r"\A(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)\Z", r"\\frac{\1}{\2}", braced)


def string_match(answer: str, gold: str) -> bool:
    r"""The authors' comparison of strings: `is_equiv` of Hendrycks et al. (2021) as TraceRL has it.

    Blanks, `\!`, `\left`, `\right`, degrees, percent, dollars, commas, a unit in `\text{ ...}` and
    a name of one letter before `=` are dropped; fractions and roots get one spelling, numbers
    are compared as floats.
    """
    ours, theirs = _normalise(answer), _normalise(gold)
    if ours is None or theirs is None:
        return answer == gold
    try:
        return float(ours) == float(theirs)
    except ValueError:
        return ours == theirs


def grade_answers(
    outputs: Sequence[str], golds: Sequence[str | None], *, num_workers: int | None = None
) -> list[MathVerdict]:
    """Grade the final answer of each output; without a gold answer none is correct.

    Raises:
        ValueError: if math-verify is not installed, there are not as many golds as outputs, or
            `num_workers` is below 1.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    pairs: dict[int, tuple[str, str]] = {}
    finals = [last_boxed(output) for output in outputs]
    for number, (final, gold) in enumerate(zip(finals, golds, strict=True)):
        if final is not None and gold is not None:
            pairs[number] = final, gold.strip()
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, MAX_WORKERS, 1 + len(pairs) // PAIRS_PER_WORKER)
    # None from `one_number` is a verdict already, and needs no comparison.
    read = {
        number: (answer, gold)
        for number, (final, gold) in pairs.items()
        if (answer := one_number(final, gold)) is not None
    }
    outcomes = dict(zip(read, workers.compare(list(read.values()), num_workers), strict=True))
    return [
        MathVerdict(
            final,
            outcomes.get(number) == "equal",
            number in pairs and string_match(*pairs[number]),
            outcomes.get(number) == "timeout",
        )
        for number, final in enumerate(finals)
    ]


@lru_cache(maxsize=8)
def first_unfit_gold(golds: tuple[str, ...]) -> int | None:
    """The number of the first gold answer that is not equal to itself; None if all are.

    Raises:
        ValueError: if math-verify is not installed.
    """
    # Numbers equal themselves and most gold answers are numbers, so often no worker is started.
    asked = [number for number, gold in enumerate(golds) if not is_one_number(gold)]
    chosen = [golds[number] for number in asked]
    verdicts = grade_answers([f"\\boxed{{{gold}}}" for gold in chosen], chosen)
    return next((n for n, v in zip(asked, verdicts, strict=True) if not v.correct), None)
