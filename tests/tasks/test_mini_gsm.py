from __future__ import annotations

import re
from itertools import product
from typing import get_args

import pytest

from t3d.tasks import mini_gsm
from t3d.tasks.base import Example, Split
from t3d.tasks.generated import EQUATION, ITEMS, NAMES
from t3d.tasks.mini_gsm import DAYS, MAX_VALUE, MiniGSM

SPLITS: tuple[Split, ...] = get_args(Split)
TASK = MiniGSM()
GAINS = ("buys", "finds", "gets", "brings")
LOSSES = ("loses", "sells", "gives away", "takes")
DOUBLES = ("doubles", "twice as many")
DAY = re.compile("|".join(DAYS))


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?]) ", text)


def integer(sentence: str) -> int:
    (number,) = re.findall(r"\d+", sentence)
    return int(number)


def solve(question: str) -> list[int]:
    """The running value after every sentence, by reading the question alone."""
    start, *events, ask = sentences(question)
    assert ask.endswith("?")
    values = [integer(start)]
    for event in events:
        kinds = [
            kind
            for kind, words in (("+", GAINS), ("-", LOSSES), ("*", DOUBLES))
            if any(word in event for word in words)
        ]
        match kinds:
            case ["+"]:
                values.append(values[-1] + integer(event))
            case ["-"]:
                values.append(values[-1] - integer(event))
            case ["*"]:
                values.append(values[-1] * 2)
            case _:
                raise AssertionError(f"{event!r} reads as {kinds}")
    return values


def compute(step: str) -> tuple[int, int]:
    """Value before and after a step of a worked answer, by its arithmetic alone."""
    ((a, op, k),) = re.findall(r"(\d+) ([-+*]) (\d+)", step)
    told = int(re.findall(r"\d+", step)[-1])
    assert told == {"+": int(a) + int(k), "-": int(a) - int(k), "*": int(a) * int(k)}[op]
    return int(a), told


def shape(sentence: str) -> str:
    """The sentence without its numbers, name, item, day and operator."""
    sentence = re.sub(rf"\b({'|'.join(NAMES)})\b", "N", sentence)
    sentence = re.sub(rf"\b({'|'.join(ITEMS)})\b", "I", sentence)
    sentence = re.sub(rf"\b({'|'.join(DAYS)})\b", "D", sentence)
    return re.sub(r" [-+*] ", " o ", re.sub(r"\d+", "0", sentence))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return TASK.examples("train", 1000)


def test_worked_answers_follow_from_the_questions(examples: list[Example]):
    for example in examples:
        assert example.reference is not None
        values = solve(example.question)
        assert 2 <= len(values) - 1 <= 5
        assert all(0 <= value <= MAX_VALUE for value in values)
        assert example.answer == str(values[-1])

        *steps, final = sentences(example.reference)
        for day, step in zip(DAYS, steps, strict=False):
            assert DAY.findall(step) in ([day], [])
        assert DAY.findall(example.question) == list(DAYS[: len(steps)])
        assert len(steps) == len(values) - 1
        for before, after, step in zip(values, values[1:], steps, strict=False):
            assert compute(step) == (before, after)
        assert f"\\boxed{{{values[-1]}}}" in final


def test_every_number_of_steps_and_every_phrasing_occurs(examples: list[Example]):
    assert {len(sentences(e.question)) - 2 for e in examples} == {2, 3, 4, 5}
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    found = {shape(sentence) for text in texts for sentence in sentences(text)}
    fields = {"name": NAMES[0], "item": ITEMS[0], "a": 1, "op": "+", "k": 2, "b": 3, "day": DAYS[0]}
    phrasings = (
        *mini_gsm._START,
        *mini_gsm._GAIN,
        *mini_gsm._LOSE,
        *mini_gsm._DOUBLE,
        *mini_gsm._ASK,
        *mini_gsm.FINAL,
    )
    steps = {
        f"{opening} {equation}{closing}".lstrip()
        for opening, equation, closing in product(mini_gsm.OPENING, EQUATION, mini_gsm.CLOSING)
    }
    assert len(steps) == 8 * 3 * 4
    expected = {shape(text.format(**fields)) for text in (*phrasings, *steps)}
    assert found <= expected
    assert found >= {shape(phrasing.format(**fields)) for phrasing in phrasings}
    assert found >= {shape(text.format(**fields)) for text in steps}
    assert {word for text in texts for word in re.findall(r"\w+", text)} >= {*NAMES, *ITEMS, *DAYS}


@pytest.mark.parametrize("split", SPLITS)
def test_every_generated_question_is_known_for_one(split: Split):
    for seed in range(3):
        assert all(TASK.is_problem(e.question) for e in TASK.examples(split, 200, seed=seed))


def test_a_question_that_differs_in_one_word_or_number_is_none(examples: list[Example]):
    for example in examples[:10]:
        words = example.question.split()
        for i, word in enumerate(words):
            others = [word + "s", *(["77"] if word.isdigit() else [])]
            for other in others:
                changed = [*words[:i], other, *words[i + 1 :]]
                assert not TASK.is_problem(" ".join(changed))
            assert not TASK.is_problem(" ".join(words[:i] + words[i + 1 :]))


def test_a_question_of_the_same_form_is_one():
    assert TASK.is_problem(
        "Tom has 5 pens. On Monday Tom finds 4. On Tuesday Tom sells 1. How many pens are left?"
    )


@pytest.mark.parametrize(
    "question",
    [
        "",
        "What is the capital of France?",
        "What is 3 + 4?",
        "How many apples are left?",
        # The words are the generator's; one event alone, or other days, is not.
        "Tom has 5 apples. On Monday Tom finds 4. How many apples are left?",
        "Tom has 5 apples. On Friday Tom finds 4. On Monday Tom finds 1. How many apples are left?",
        # Nobody else comes in, nothing falls below zero, and numbers are small.
        "Tom has 5 pens. On Monday Mia finds 4. On Tuesday Tom finds 1. How many pens are left?",
        "Tom has 5 pens. On Monday Tom sells 6. On Tuesday Tom finds 1. How many pens are left?",
        "Tom has 9 pens. On Monday Tom finds 6. On Tuesday Tom finds 6. How many pens are left?",
        "Tom has 5 pens. On Monday Tom finds 4. On Tuesday Tom finds 1. How many books are left?",
    ],
)
def test_a_question_from_elsewhere_is_none(question: str):
    assert not TASK.is_problem(question)
