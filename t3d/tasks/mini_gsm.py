"""mini_gsm: generated grade-school word problems with two to five reasoning steps.

Every step of a solution can be told in many ways. Tokens of one step therefore depend on
each other, and that is what a model loses when it commits several of them in one pass.

Streams, splits and grading are those of all generated tasks (`t3d.tasks.generated`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from t3d.tasks.generated import EQUATION, ITEMS, NAMES, NUM_STEPS, WEEK, GeneratedTask

MAX_VALUE = 12
MAX_CHANGE = 6
DAYS = WEEK[:5]

_START = ("{name} has {a} {item}.", "{name} starts with {a} {item}.", "{name} owns {a} {item}.")
_GAIN = (
    "On {day} {name} buys {k} more.",
    "On {day} {name} finds {k}.",
    "{name} gets {k} more on {day}.",
    "A friend brings {k} on {day}.",
)
_LOSE = (
    "On {day} {name} loses {k}.",
    "On {day} {name} sells {k}.",
    "{name} gives away {k} on {day}.",
    "A friend takes {k} on {day}.",
)
_DOUBLE = ("On {day} the number doubles.", "On {day} {name} has twice as many.")
_EVENTS = {"gain": (_GAIN, "+"), "lose": (_LOSE, "-"), "double": (_DOUBLE, "*")}
"""How what happens on a day is told, and its operator."""
_ASK = (
    "How many {item} does {name} have now?",
    "How many {item} are left?",
    "What is the number of {item}?",
)
OPENING = (
    "",
    "Then",
    "{day}:",
    "On {day},",
    "So on {day},",
    "After {day} {name} has",
    "By {day} we count up to",
    "{name} knows that on {day} it is",
)
"""Openings of very different lengths, so that a number may stand at any position. Where tokens are
drawn independently, each position takes the likeliest token of another telling."""
CLOSING = (".", " now.", " {item} in all.", " {item} for {name}.")
FINAL = (
    "The answer is \\boxed{{{b}}}.",
    "So the answer is \\boxed{{{b}}}.",
    "{name} has \\boxed{{{b}}} {item}.",
    "In total: \\boxed{{{b}}}.",
    "This leaves {name} with \\boxed{{{b}}} {item}.",
    "Now \\boxed{{{b}}} {item} are left.",
    "Altogether, that is \\boxed{{{b}}}.",
    "At the end {name} owns \\boxed{{{b}}} {item}.",
)


def _possible(value: int) -> dict[str, range]:
    """What may happen to a number, and by how much."""
    changes = {
        "gain": range(1, min(MAX_CHANGE, MAX_VALUE - value) + 1),
        "lose": range(1, min(MAX_CHANGE, value) + 1) if value > 1 else range(0),
        "double": range(2, 3) if 0 < value <= MAX_VALUE // 2 else range(0),
    }
    return {kind: amounts for kind, amounts in changes.items() if amounts}


def _after(value: int, op: str, k: int) -> int:
    return {"+": value + k, "-": value - k, "*": value * k}[op]


class MiniGSM(GeneratedTask):
    """The generated benchmark; see the module's docstring."""

    name = "mini_gsm"
    things = ITEMS

    def problem(self, rng: random.Random) -> tuple[str, str, str]:
        names = {"name": rng.choice(NAMES), "item": rng.choice(ITEMS)}
        value = rng.randint(2, 9)
        question = [rng.choice(_START).format(a=value, **names)]
        solution: list[str] = []
        num_steps = rng.choices(NUM_STEPS[0], NUM_STEPS[1])[0]
        for day in DAYS[:num_steps]:
            possible = _possible(value)
            kinds = list(possible)
            kind = rng.choices(kinds, [1 if k == "double" else 3 for k in kinds])[0]
            templates, op = _EVENTS[kind]
            # A doubling draws no number.
            k = 2 if kind == "double" else rng.randint(1, possible[kind][-1])
            template, new = rng.choice(templates), _after(value, op, k)
            question.append(template.format(k=k, day=day, **names))
            step = f"{rng.choice(OPENING)} {rng.choice(EQUATION)}{rng.choice(CLOSING)}".lstrip()
            solution.append(step.format(a=value, op=op, k=k, b=new, day=day, **names))
            value = new
        question.append(rng.choice(_ASK).format(**names))
        solution.append(rng.choice(FINAL).format(b=value, **names))
        return " ".join(question), " ".join(solution), str(value)

    def reads(self, sentences: Sequence[str], name: str, thing: str) -> bool:
        (first, *events, last), names = sentences, {"name": name, "item": thing}
        starts = range(2, 10)
        values = {a for a in starts if first in [text.format(a=a, **names) for text in _START]}
        for day, event in zip(DAYS, events, strict=False):
            values = {
                _after(value, op, k)
                for value in values
                for kind, amounts in _possible(value).items()
                for k in amounts
                for templates, op in [_EVENTS[kind]]
                if event in [text.format(k=k, day=day, **names) for text in templates]
            }
        return bool(values) and last in [text.format(**names) for text in _ASK]

    def holds(self, a: str, op: str, k: str, b: str) -> bool:
        if not (a.isdigit() and k.isdigit() and b.isdigit()):
            return False
        return _after(int(a), op, int(k)) == int(b)
