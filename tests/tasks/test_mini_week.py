from __future__ import annotations

import re
from itertools import product

import pytest

from t3d.tasks import mini_week
from t3d.tasks.base import Example
from t3d.tasks.generated import EQUATION, EVENTS, NAMES, WEEK
from t3d.tasks.mini_week import MAX_DAYS, MiniWeek

TASK = MiniWeek()
LATER = ("later", "after")
EARLIER = ("earlier", "before", "sooner")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return TASK.examples("train", 1500)


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?]) ", text)


def count(day: str, k: int, *, back: bool) -> str:
    """Day by day, from one name to the next."""
    following: dict[str, str] = dict(zip(WEEK, (*WEEK[1:], WEEK[0]), strict=True))
    if back:
        following = {after: before for before, after in following.items()}
    for _ in range(k):
        day = following[day]
    return day


def solve(question: str) -> list[str]:
    """The day of every event in turn, by reading the question alone."""
    start, *counts, _ = sentences(question)
    [day] = re.findall("|".join(WEEK), start)
    days = [day]
    for told in counts:
        back = any(word in told for word in EARLIER)
        assert back != any(word in told for word in LATER)
        [k] = re.findall(r"\d+", told)
        assert ("1 day " in told) == (k == "1")
        days.append(count(days[-1], int(k), back=back))
    return days


def test_worked_answers_follow_from_the_questions(examples: list[Example]):
    for example in examples:
        days = solve(example.question)
        *steps, final = sentences(example.reference or "")
        assert len(steps) + 1 == len(days)
        for before, after, step in zip(days, days[1:], steps, strict=False):
            [(a, op, k)] = re.findall(r"(\w+day) ([-+]) (\d)", step)
            assert (a, re.findall("|".join(WEEK), step)[-1]) == (before, after)
            assert count(before, int(k), back=op == "-") == after
        assert f"\\boxed{{{days[-1]}}}" in final
        assert example.answer == days[-1]


def test_the_question_asks_for_its_last_event_and_tells_each_once(examples: list[Example]):
    for example in examples:
        *told, asked = re.findall("|".join(EVENTS), example.question)
        assert asked == told[-1]
        assert len(set(told)) == len(told)
        spoken = set(re.findall("|".join(NAMES), f"{example.question} {example.reference}"))
        assert len(spoken) == 1


def shape(sentence: str) -> str:
    """The sentence without its name, event, day, count and operator."""
    for words, letter in ((NAMES, "N"), (EVENTS, "E"), (WEEK, "D")):
        sentence = re.sub(rf"\b({'|'.join(words)})\b", letter, sentence)
    return re.sub(r" [-+] ", " o ", re.sub(r"\d( days?)?", "0", sentence))


def test_every_number_of_steps_and_every_telling_occurs(examples: list[Example]):
    assert {len(sentences(e.question)) - 2 for e in examples} == {2, 3, 4, 5}
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    found = {shape(sentence) for text in texts for sentence in sentences(text)}
    own = {"name": NAMES[0], "event": EVENTS[0], "day": WEEK[0], "days": "2 days"}
    own |= {"a": WEEK[0], "op": "+", "k": "2", "b": WEEK[1]}
    told = mini_week
    steps = [
        f"{opening} {equation}{closing}".lstrip()
        for opening, equation, closing in product(told._OPENING, EQUATION, told._CLOSING)
    ]
    templates = [*told._START, *told._LATER, *told._EARLIER, *told._ASK, *told._FINAL, *steps]
    assert found == {shape(template.format(**own)) for template in templates}
    # Without several lengths there is nothing to lose by drawing tokens independently.
    assert len({len(step.split()) for step in steps}) >= 8
    assert {int(k) for text in texts for k in re.findall(r"\d+", text)} == {*range(1, MAX_DAYS + 1)}


def test_a_question_that_differs_in_one_word_or_number_is_none(examples: list[Example]):
    for example in examples[:10]:
        words = example.question.split()
        for i, word in enumerate(words):
            others = [word + "s", *(["7"] if word.isdigit() else [])]
            for other in others:
                assert not TASK.is_problem(" ".join([*words[:i], other, *words[i + 1 :]]))
            assert not TASK.is_problem(" ".join(words[:i] + words[i + 1 :]))


@pytest.mark.parametrize(
    ("question", "known"),
    [
        ("Tom has a game on Friday. The trip is 1 day later. Then, 6 days later, comes the race. "
         "Which day is the race on?", True),
        # Another event than the last, an event twice, somebody else, one count alone.
        ("Tom has a game on Friday. The trip is 1 day later. Then, 6 days later, comes the race. "
         "Which day is the trip on?", False),
        ("Tom has a game on Friday. The trip is 1 day later. Then, 6 days later, comes the game. "
         "Which day is the game on?", False),
        ("Tom has a game on Friday. The trip is 1 day later. 6 days after that Mia has a race. "
         "Which day is the race on?", False),
        ("Tom has a game on Friday. The trip is 1 day later. Which day is the trip on?", False),
    ],
)  # fmt: skip
def test_a_question_is_known_by_its_form(question: str, known: bool):
    assert TASK.is_problem(question) == known
