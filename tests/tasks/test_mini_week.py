from __future__ import annotations

import re
from itertools import product

import pytest

from t3d.tasks import mini_week
from t3d.tasks.base import Example
from t3d.tasks.generated import EQUATION, EVENTS, NAMES, WEEK
from t3d.tasks.mini_week import MAX_DAYS, MiniWeek

TASK = MiniWeek()
LATER = ("later", "after that")
EARLIER = ("earlier", "before that", "sooner")


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
    """The day before and after every move, by reading the question alone."""
    start, *moves, _ = sentences(question)
    [day] = re.findall("|".join(WEEK), start)
    days = [day]
    for told in moves:
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


def test_a_problem_is_about_one_person_and_one_event(examples: list[Example]):
    for example in examples:
        whole = f"{example.question} {example.reference}"
        for words in (NAMES, EVENTS):
            assert len(set(re.findall(rf"\b(?:{'|'.join(words)})\b", whole))) == 1


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
        for opening, equation, closing in product(told.OPENING, EQUATION, told.CLOSING)
    ]
    templates = [*told._START, *told._LATER, *told._EARLIER, *told._ASK, *told.FINAL, *steps]
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
    ("moves", "known"),
    [
        ("The game is moved 1 day later. Then the game comes 6 days sooner.", True),
        ("The game is moved 1 day later. The game is moved 1 day earlier.", True),
        # One move alone, another event, somebody else, and a week or more.
        ("The game is moved 1 day later.", False),
        ("The game is moved 1 day later. Then the race comes 6 days sooner.", False),
        ("The game is moved 1 day later. Mia moves the game 6 days later.", False),
        ("The game is moved 1 day later. Then the game comes 7 days sooner.", False),
        ("The game is moved 1 days later. Then the game comes 6 days sooner.", False),
    ],
)
def test_a_question_is_known_by_its_form(moves: str, known: bool):
    question = f"Tom has a game on Friday. {moves} On which day is the game?"
    assert TASK.is_problem(question) == known
