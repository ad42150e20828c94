"""Several tasks as one: who gives how much, and who grades what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.tasks import get_task, mixture
from t3d.tasks.mixture import Mixture, repeated

GSM, WEEK = get_task("mini_gsm"), get_task("mini_week")
BOTH = Mixture([GSM, WEEK])


def test_one_task_is_itself() -> None:
    assert mixture([GSM]) is GSM
    assert mixture([GSM, WEEK]).name == "mini_gsm+mini_week"


@given(st.integers(0, 30), st.sampled_from(["train", "dev", "test"]), st.integers(0, 9))
def test_shares_are_equal_and_ids_unique(num: int, split, seed: int) -> None:
    found = BOTH.examples(split, num, seed=seed)
    assert len({example.id for example in found}) == len(found) == num
    # In turn, so that any part of them has as much of each.
    names = [example.id.split(":")[0] for example in found]
    assert names == (["mini_gsm", "mini_week"] * num)[:num]
    for task in (GSM, WEEK):
        own = [e.question for e in found if e.id.startswith(f"{task.name}:")]
        assert own == [e.question for e in task.examples(split, len(own), seed=seed)]


def test_the_same_ids_of_two_tasks_are_told_apart(tmp_path: Path) -> None:
    tasks = []
    for name, num in (("few", 2), ("many", 9)):
        path = tmp_path / f"{name}.jsonl"
        lines = [{"id": str(i), "question": f"{name} {i}", "answer": f"{i}"} for i in range(num)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        tasks.append(get_task(str(path)))
    found = Mixture(tasks).examples("test", 8)
    assert len({example.id for example in found}) == len(found)
    # What a task has not, no other gives in its place.
    assert [e.question for e in found] == [
        "few 0", "many 0", "few 1", "many 1", "many 2", "many 3"
    ]  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
def test_each_answer_is_graded_by_its_own_task(order: int) -> None:
    found = BOTH.examples("train", 12)[::order]
    outputs = [
        str(e.reference if number % 3 else "The answer is nothing.")
        for number, e in enumerate(found)
    ]
    grades = BOTH.grade(found, outputs)
    assert [grade.correct for grade in grades] == [number % 3 > 0 for number in range(12)]
    for task in (GSM, WEEK):
        mine = [i for i, e in enumerate(found) if e.id.startswith(f"{task.name}:")]
        own = {e.question: e for e in task.examples("train", 6)}
        asked = [own[found[i].question] for i in mine]
        assert [grades[i] for i in mine] == task.grade(asked, [outputs[i] for i in mine])
    assert BOTH.grade([], []) == []


@given(st.integers(0, 20), st.integers(2, 5), st.integers(0, 9))
def test_a_repeated_task_asks_and_grades_as_the_task(num: int, times: int, seed: int) -> None:
    found = repeated(BOTH, times).examples("train", num, seed=seed)
    assert len({example.id for example in found}) == len(found) == num * times
    once = BOTH.examples("train", num, seed=seed)
    assert [e.question for e in found] == [e.question for e in once for _ in range(times)]
    outputs = [f"\\boxed{{{e.answer if i % 2 else i}}}" for i, e in enumerate(found)]
    assert repeated(BOTH, times).grade(found, outputs) == BOTH.grade(
        [e for e in once for _ in range(times)], outputs
    )


def test_a_task_once_is_itself() -> None:
    assert repeated(BOTH, 1) is BOTH
