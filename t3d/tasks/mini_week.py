"""mini_week: an event is moved on the calendar, two to five times; the answers are weekdays.

Like mini_gsm, every step of a worked answer can be told in many ways of different lengths.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from t3d.tasks.generated import EQUATION, EVENTS, NAMES, NUM_STEPS, WEEK, GeneratedTask

MAX_DAYS = 6

_START = (
    "{name} has a {event} on {day}.",
    "The {event} of {name} is on {day}.",
    "{name} goes to a {event} on {day}.",
)
_LATER = (
    "The {event} is moved {days} later.",
    "{name} moves the {event} {days} later.",
    "Then the {event} comes {days} later.",
    "{name} plans the {event} {days} after that.",
)
_EARLIER = (
    "The {event} is moved {days} earlier.",
    "{name} moves the {event} {days} earlier.",
    "Then the {event} comes {days} sooner.",
    "{name} plans the {event} {days} before that.",
)
_COUNTS = {"+": _LATER, "-": _EARLIER}
"""How a count is told, by its operator."""
_ASK = (
    "On which day is the {event}?",
    "Which day is the {event} on?",
    "What day does {name} have the {event}?",
)
OPENING = (
    "",
    "Then",
    "The {event}:",
    "For the {event},",
    "{name} has it on",
    "Now we count from",
    "The {event} of {name} is on",
    "From there, {name} counts up to the {event}:",
)
CLOSING = (".", " now.", " for {name}.", " for the {event}.")
FINAL = (
    "The answer is \\boxed{{{b}}}.",
    "So the answer is \\boxed{{{b}}}.",
    "That is a \\boxed{{{b}}}.",
    "In the end: \\boxed{{{b}}}.",
    "The {event} is on \\boxed{{{b}}}.",
    "{name} has the {event} on \\boxed{{{b}}}.",
    "So \\boxed{{{b}}} is the day of the {event}.",
    "At the end {name} goes to the {event} on \\boxed{{{b}}}.",
)


def _told(k: int) -> str:
    return "1 day" if k == 1 else f"{k} days"


def _reads(
    sentence: str, templates: Sequence[str], words: Sequence[str], name: str, event: str
) -> bool:
    """Whether a template with one of the days, or of the counts, tells the sentence."""
    return any(
        sentence == template.format(name=name, event=event, day=word, days=word)
        for template in templates
        for word in words
    )


class MiniWeek(GeneratedTask):
    """The generated benchmark; see the module's docstring."""

    name = "mini_week"
    things = EVENTS

    def problem(self, rng: random.Random) -> tuple[str, str, str]:
        num_steps = rng.choices(NUM_STEPS[0], NUM_STEPS[1])[0]
        names = {"name": rng.choice(NAMES), "event": rng.choice(EVENTS)}
        day = rng.randrange(len(WEEK))
        question = [rng.choice(_START).format(day=WEEK[day], **names)]
        solution: list[str] = []
        for _ in range(num_steps):
            op, k = rng.choice("+-"), rng.randint(1, MAX_DAYS)
            question.append(rng.choice(_COUNTS[op]).format(days=_told(k), **names))
            new = (day + k if op == "+" else day - k) % len(WEEK)
            step = f"{rng.choice(OPENING)} {rng.choice(EQUATION)}{rng.choice(CLOSING)}".lstrip()
            solution.append(step.format(a=WEEK[day], op=op, k=k, b=WEEK[new], **names))
            day = new
        question.append(rng.choice(_ASK).format(**names))
        solution.append(rng.choice(FINAL).format(b=WEEK[day], **names))
        return " ".join(question), " ".join(solution), WEEK[day]

    def reads(self, sentences: Sequence[str], name: str, thing: str) -> bool:
        first, *moves, last = sentences
        days = [_told(k) for k in range(1, MAX_DAYS + 1)]
        return (
            _reads(first, _START, WEEK, name, thing)
            and all(_reads(move, (*_LATER, *_EARLIER), days, name, thing) for move in moves)
            and _reads(last, _ASK, ("",), name, thing)
        )

    def holds(self, a: str, op: str, k: str, b: str) -> bool:
        if a not in WEEK or b not in WEEK or op not in _COUNTS or not k.isdigit():
            return False
        step = int(k) if op == "+" else -int(k)
        return WEEK[(WEEK.index(a) + step) % len(WEEK)] == b
