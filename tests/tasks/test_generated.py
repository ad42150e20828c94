"""What all generated tasks share: streams, splits and strict grading."""

from __future__ import annotations

import re
from itertools import islice
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.tasks import GENERATED, get_task
from t3d.tasks import generated as module
from t3d.tasks.base import Example, Grade, Split
from t3d.tasks.generated import EVENTS, ITEMS, NAMES, WEEK, GeneratedTask

SPLITS: tuple[Split, ...] = get_args(Split)
TASKS = {name: task() for name, task in GENERATED.items()}
EXAMPLES = {name: task.examples("train", 300) for name, task in TASKS.items()}


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest) -> GeneratedTask:
    return TASKS[request.param]


@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_a_function_of_split_and_seed(task: GeneratedTask, split: Split):
    assert task.examples(split, 20, seed=3) == type(task)().examples(split, 20, seed=3)
    assert task.examples(split, 8, seed=3) == task.examples(split, 20, seed=3)[:8]
    assert list(islice(task.stream(split, seed=3), 20)) == task.examples(split, 20, seed=3)
    ours, theirs = (task.examples(split, 20, seed=seed) for seed in (3, 4))
    assert {e.question for e in ours}.isdisjoint(e.question for e in theirs)


def test_no_question_is_in_two_splits_or_twice_in_one():
    questions: dict[str, Split] = {}
    ids: set[str] = set()
    for task in TASKS.values():
        for split in SPLITS:
            for seed in range(3):
                found = task.examples(split, 100, seed=seed)
                assert len({e.question for e in found}) == 100
                ids |= {e.id for e in found}
                for example in found:
                    assert questions.setdefault(example.question, split) == split
    assert len(ids) == len(TASKS) * 3 * 3 * 100


def test_a_problem_that_comes_up_again_is_skipped(
    task: GeneratedTask, monkeypatch: pytest.MonkeyPatch
):
    once = task.examples("train", 10)
    derive = module.derive_key
    monkeypatch.setattr(module, "derive_key", lambda seed, name, n: derive(seed, name, n // 3))
    assert task.examples("train", 10) == once


def test_a_task_knows_its_own_questions_and_no_others():
    for name, task in TASKS.items():
        for other, examples in EXAMPLES.items():
            assert {task.is_problem(e.question) for e in examples} == {other == name}
        for question in ("", "What is 3 + 4?", "On which day is the test?"):
            assert not task.is_problem(question)


def test_the_worked_answer_is_graded_correct(task: GeneratedTask):
    examples = EXAMPLES[task.name]
    grades = task.grade(examples, [example.reference or "" for example in examples])
    assert grades == [Grade(True, e.answer, string_correct=True, faithful=True) for e in examples]


@given(name=st.sampled_from(list(TASKS)), number=st.integers(0, 299), data=st.data())
def test_a_word_or_number_that_is_exchanged_is_unfaithful(
    name: str, number: int, data: st.DataObject
):
    """Only a word for one that the question has too, and only outside of an equation, may pass."""
    task, example = TASKS[name], EXAMPLES[name][number]
    told, boxed, rest = (example.reference or "").partition("\\boxed{")
    words = (*NAMES, *ITEMS, *EVENTS, *WEEK)
    places = list(re.finditer(rf"\b(?:{'|'.join(words)}|\d+)\b", told))
    place = data.draw(st.sampled_from(places))
    # Seven days more are the same day.
    others = [str(n) for n in range(7)] if place[0].isdigit() else words
    known = {*re.findall(r"\w+", f"{example.question} {told}")}
    other = data.draw(st.sampled_from([w for w in others if w.isdigit() or w not in known]))
    changed = told[: place.start()] + other + told[place.end() :] + boxed + rest
    [grade] = task.grade([example], [changed])
    same = other == place[0]
    assert (grade.string_correct, grade.correct, grade.faithful) == (True, same, same)
    assert (grade.reason is None) == same


QUESTION = {
    "mini_gsm": "Ben has 4 pens. On Monday Ben finds 3. Ben gets 5 more on Tuesday. How many "
    "pens are left?",
    "mini_week": "Ben has a game on Friday. The game is moved 3 days later. Then the game comes 1 "
    "day sooner. On which day is the game?",
}
ANSWER = {"mini_gsm": "12", "mini_week": "Sunday"}
REFERENCE = {
    "mini_gsm": r"4 + 3 = 7. Then 7 + 5, so 12. In total: \boxed{12}.",
    "mini_week": r"Friday + 3 = Monday. Then Monday - 1, so Sunday. In the end: \boxed{Sunday}.",
}


@pytest.mark.parametrize(
    ("name", "told", "reason"),
    [
        ("mini_gsm", "4 + 3 = 7. 7 + 5, making 12.", None),
        ("mini_gsm", "Nothing to count.", None),
        ("mini_gsm", "Ben has 4 + 3 = 8.", "says 4 + 3 = 8"),
        ("mini_gsm", "4 + 3, so 7 for Tom.", "names Tom"),
        ("mini_gsm", "4 + 3, so 7 cards.", "names cards"),
        ("mini_gsm", "On Friday, 4 + 3, so 7.", "names Friday"),
        ("mini_gsm", "Ben has a party: 4 + 3, so 7.", "names party"),
        ("mini_gsm", "4 + 3 7 + 5, so 12.", "has a broken equation"),
        ("mini_gsm", "4 + 3 = 7 = 7.", "has a broken equation"),
        ("mini_gsm", "4 + Monday = 7.", "says 4 + Monday = 7"),
        ("mini_week", "Friday + 3, making Monday. Monday - 1 = Sunday for Ben.", None),
        ("mini_week", "Friday + 3 = Sunday.", "says Friday + 3 = Sunday"),
        ("mini_week", "Friday + 2 = Sunday.", None),
        ("mini_week", "Friday - 3 = Tuesday.", "names Tuesday"),
        ("mini_week", "The race of Ben is on Sunday.", "names race"),
        ("mini_week", "Friday * 3 = Monday.", "says Friday * 3 = Monday"),
        ("mini_week", "3 + 4 = 7.", "says 3 + 4 = 7"),
    ],
)
def test_what_makes_a_response_unfaithful(name: str, told: str, reason: str | None):
    example = Example("id", QUESTION[name], ANSWER[name], REFERENCE[name])
    right, wrong = ANSWER[name], "nothing"
    grades = TASKS[name].grade(
        [example] * 2, [f"{told} \\boxed{{{right}}}", f"{told} \\boxed{{{wrong}}}"]
    )
    faithful = reason is None
    assert grades == [
        Grade(faithful, right, string_correct=True, faithful=faithful, reason=reason),
        # The other answer is reason enough.
        Grade(False, wrong, string_correct=False, faithful=faithful),
    ]


@pytest.mark.parametrize(
    ("output", "right", "final"),
    [
        (r"\boxed{12}", True, "12"),
        (r"In total: \boxed{ 12 }.", True, "12"),
        ("\\boxed{\n12\t}", True, "12"),
        (r"\boxed{3} no, \boxed{12}", True, "12"),
        (r"\boxed{12} no, \boxed{3}", False, "3"),
        (r"\boxed{1 2}", False, "1 2"),
        (r"\boxed{}", False, ""),
        (r"\boxed{12", False, None),
        (r"boxed{12}", False, None),
        ("The answer is 12.", False, None),
        ("", False, None),
    ],
)
def test_the_last_box_is_graded(output: str, right: bool, final: str | None):
    [grade] = get_task("mini_gsm").grade([Example("id", "question", "12")], [output])
    assert grade == Grade(right, final, string_correct=right, faithful=True)


def test_nothing_is_correct_without_a_gold_answer():
    [grade] = get_task("mini_gsm").grade([Example("id", "question")], [r"\boxed{12}"])
    assert (grade.correct, grade.string_correct) == (False, False)
