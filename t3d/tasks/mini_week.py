"""mini_week: days counted on a calendar, in two to five steps; the answers are weekdays.

Like mini_gsm, every step of a worked answer can be told in many ways of different lengths.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from t3d.tasks.generated import EQUATION, EVENTS, NAMES, NUM_STEPS, WEEK, GeneratedTask

MAX_DAYS = 6

_START = (
    "{name} has a {event} on {day}.",
    "The {event} of {name} is on {day}.",
    "{name} goes to a {event} on {day}.",
)
_LATER = (
    "The {event} is {days} later.",
    "{days} after that {name} has a {event}.",
    "Then, {days} later, comes the {event}.",
    "{name} plans the {event} {days} after it.",
)
_EARLIER = (
    "The {event} is {days} earlier.",
    "{days} before that {name} has a {event}.",
    "The {event} comes {days} sooner.",
    "{name} plans the {event} {days} before it.",
)
_COUNTS = {"+": _LATER, "-": _EARLIER}
"""How a count is told, by its operator."""
_ASK = (
    "On which day is the {event}?",
    "Which day is the {event} on?",
    "What day does {name} have the {event}?",
)
_OPENING = (
    "",
    "Then",
    "The {event}:",
    "For the {event},",
    "{name} has it on",
    "Now we count from",
    "The {event} of {name} is on",
    "From there, {name} counts up to the {event}:",
)
_CLOSING = (".", " now.", " for {name}.", " for the {event}.")
_FINAL = (
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


def _reads(sentence: str, templates: Sequence[str], event: str, name: str, *words: str) -> bool:
    """Whether a template tells the sentence about this event and person, with one of the words."""
    return any(
        sentence == template.format(name=name, event=event, day=word, days=word)
        for template in templates
        for word in words
    )


class MiniWeek(GeneratedTask):
    """The generated benchmark; see the module's docstring."""

    name = "mini_week"

    def problem(self, rng: random.Random) -> tuple[str, str, str]:
        num_steps = rng.choices(NUM_STEPS[0], NUM_STEPS[1])[0]
        name = rng.choice(NAMES)
        events = rng.sample(EVENTS, num_steps + 1)
        day = rng.randrange(len(WEEK))
        question = [rng.choice(_START).format(name=name, event=events[0], day=WEEK[day])]
        solution: list[str] = []
        for event in events[1:]:
            op, k = rng.choice("+-"), rng.randint(1, MAX_DAYS)
            told = rng.choice(_COUNTS[op])
            question.append(told.format(days=_told(k), name=name, event=event))
            new = (day + k if op == "+" else day - k) % len(WEEK)
            step = f"{rng.choice(_OPENING)} {rng.choice(EQUATION)}{rng.choice(_CLOSING)}".lstrip()
            solution.append(
                step.format(a=WEEK[day], op=op, k=k, b=WEEK[new], name=name, event=event)
            )
            day = new
        question.append(rng.choice(_ASK).format(name=name, event=events[-1]))
        solution.append(rng.choice(_FINAL).format(b=WEEK[day], name=name, event=events[-1]))
        return " ".join(question), " ".join(solution), WEEK[day]

    def is_problem(self, question: str) -> bool:
        sentences = re.split(r"(?<=\.) ", question)
        events = re.findall(rf"\b(?:{'|'.join(EVENTS)})\b", question)
        if len(sentences) - 2 not in NUM_STEPS[0] or len(events) != len(sentences):
            return False
        first, *counts, last = sentences
        days = [_told(k) for k in range(1, MAX_DAYS + 1)]
        return len(set(events)) == len(counts) + 1 and any(
            _reads(first, _START, events[0], name, *WEEK)
            and all(
                _reads(count, (*_LATER, *_EARLIER), event, name, *days)
                for count, event in zip(counts, events[1:], strict=False)
            )
            and _reads(last, _ASK, events[-2], name, "")
            for name in NAMES
        )

    def holds(self, a: str, op: str, k: str, b: str) -> bool:
        if a not in WEEK or b not in WEEK or op not in _COUNTS or not k.isdigit():
            return False
        step = int(k) if op == "+" else -int(k)
        return WEEK[(WEEK.index(a) + step) % len(WEEK)] == b
