"""Splits, prompts and grading of the benchmarks, on small data and, where it is, on all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from t3d.tasks import TASKS, Grade, ProtocolName, Split, get_task

SPLITS: tuple[Split, ...] = get_args(Split)
CASES: list[tuple[str, ProtocolName]] = [
    *((name, protocol) for name in TASKS[2:6] for protocol in ("standard", "t3d")),
    ("mbpp_sanitized", "standard"),
]
REAL = Path(__file__).parents[3] / "shared" / "data"
SIZES = {
    ("gsm8k", "standard"): (6973, 500, 1319),
    ("mbpp", "standard"): (384, 90, 500),
    ("mbpp", "t3d"): (383, 89, 498),
    ("mbpp_sanitized", "standard"): (127, 43, 257),
}
"""Train, dev and test of the whole data."""


@pytest.mark.parametrize(("name", "protocol"), SIZES if REAL.exists() else [])
def test_sizes_of_the_whole_data(name: str, protocol: ProtocolName) -> None:
    task = get_task(name, data=REAL, protocol=protocol)
    splits = [task.examples(split, 10**6) for split in SPLITS]
    assert tuple(map(len, splits)) == SIZES[name, protocol]
    examples = [example for split in splits for example in split]
    assert len({example.id for example in examples}) == len(examples)
    assert all(example.reference for example in examples)
    if name == "gsm8k":
        assert not any("<<" in (example.reference or "") for example in examples)


@pytest.mark.parametrize(("name", "protocol"), CASES)
def test_worked_answers_are_correct_and_broken_ones_are_not(
    name: str, protocol: ProtocolName, folder: Path
) -> None:
    task = get_task(name, data=folder, protocol=protocol)
    examples = task.examples("test", 3)
    assert task.examples("test", 10**6)[: len(examples)] == examples
    good = [example.reference or "" for example in examples]
    bad = ["    return 'x'\n```" if e.answer is None else "\\boxed{-1}" for e in examples]
    after = [f"{answer}\nAs you see, it works." for answer in good]
    # A task that has not read its examples itself grades them too.
    other = get_task(name, data=folder, protocol=protocol)
    grades = other.grade([*examples] * 3, [*good, *bad, *after])
    flags = [grade.correct for grade in grades]
    assert flags == [True] * len(good) + [False] * len(bad) + [True] * len(after)
    assert all(grade.final_answer is not None for grade in grades)
    assert all((grade.reason is None) for grade in grades if grade.correct)


def test_the_end_of_a_program(folder: Path) -> None:
    code = "    return 2 * x\n"
    cases: list[tuple[ProtocolName, bool]] = [("standard", True), ("t3d", False)]
    for protocol, graded in cases:
        task = get_task("humaneval", data=folder, protocol=protocol)
        (example,) = task.examples("test", 1)
        outputs = [code, f"{code}```\n```python\ndef double(x): return 0\n```"]
        cut, second = task.grade([example] * 2, outputs)
        # Cut short: as far as it goes here, no block there. A second block: ignored, the last.
        assert cut.correct is graded
        assert second.correct is graded
        if protocol == "t3d":
            assert cut == Grade(False, None, reason="no closed ```python block")
            assert second.final_answer == "def double(x): return 0"


def test_prompts(folder: Path) -> None:
    (plain,) = get_task("math500", data=folder).examples("test", 1)
    (fixed,) = get_task("math500", data=folder, protocol="t3d").examples("test", 1)
    turn = "Halve $x$.\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert (plain.question, plain.verbatim, plain.prefix) == (turn, None, "")
    assert fixed.verbatim == f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant"
    assert plain.answer == "\\frac{x}{2}"

    (plain,) = get_task("humaneval", data=folder).examples("test", 1)
    (fixed,) = get_task("humaneval", data=folder, protocol="t3d").examples("test", 1)
    prompt = 'Here is the completed code:\n```python\ndef double(x):\n    """ Twice x. """\n'
    assert plain.prefix == prompt
    assert fixed.verbatim is not None
    assert fixed.verbatim.endswith(f". <|im_end|>\n<|im_start|>assistant\n{prompt}")
    assert plain.question.endswith("Do not include more than one code block.")

    clip = get_task("mbpp", data=folder).examples("test", 1)[0]
    assert clip.prefix.startswith("Here is the completed code:\n```python\ndef clip(x) :\n")
    assert "LIMIT" not in clip.prefix
    (edited, *_) = get_task("mbpp_sanitized", data=folder).examples("test", 9)
    assert edited.id == "mbpp/102"
    assert "Return x plus 102.\nYour code should pass the test:\nassert math" in edited.question
    assert 'def plus(x):\n    """ Return x plus 102.' in edited.prefix

    example = get_task("gsm8k", data=folder).examples("train", 9)[2]
    assert example.reference == "It is 2+1 = 3.\nThe answer is \\boxed{3}."


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("gsm8k", (3, 500, 4)), ("mbpp", (5, 90, 5)), ("mbpp_sanitized", (7, 43, 2))],
)
def test_dev_problems_are_not_trained_on(
    name: str, sizes: tuple[int, int, int], folder: Path
) -> None:
    task = get_task(name, data=folder)
    ids = [[example.id for example in task.examples(split, 10**6)] for split in SPLITS]
    assert tuple(map(len, ids)) == sizes
    assert len({*ids[0], *ids[1], *ids[2]}) == sum(sizes)
    assert task.examples("train", 2, seed=1) == task.examples("train", 2)


@pytest.mark.parametrize("name", ["math500", "humaneval"])
def test_only_a_test_split(name: str, folder: Path) -> None:
    for split in ("train", "dev"):
        with pytest.raises(ValueError, match=f"{name} has no split '{split}', only test; take"):
            get_task(name, data=folder).examples(split, 1)


def test_own_questions(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question": "1 + 1?", "answer": 2}, {"question": "2 + 2?", "answer": "4"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = get_task(str(path))
    assert task.name.startswith("mine.jsonl@")
    examples = task.examples("train", 9)
    assert [task.examples(split, 9) for split in SPLITS] == [examples] * 3
    assert task.examples("test", 1) == examples[:1]
    assert [(e.question, e.verbatim) for e in examples] == [("1 + 1?", None), ("2 + 2?", None)]
    grades = task.grade(examples, ["\\boxed{2}", "\\boxed{2}"])
    assert [grade.correct for grade in grades] == [True, False]
    path.write_text('{"question": "Why?"}')
    task = get_task(str(path))
    with pytest.raises(ValueError, match="mine.jsonl, line 1: has no answer to grade against"):
        task.examples("test", 1)
    # A rollout's prompts need none, and outputs are read without.
    (grade,) = task.grade(task.examples("train", 1), ["\\boxed{5}"])
    assert (grade.correct, grade.final_answer) == (False, "5")


def test_options_that_a_task_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mini_gsm is generated; leave out data and protocol"):
        get_task("mini_gsm", data=tmp_path)
    with pytest.raises(ValueError, match="mini_gsm is generated; leave out data and protocol"):
        get_task("mini_gsm", protocol="t3d")
    with pytest.raises(ValueError, match="mbpp_sanitized is none of the authors' tasks"):
        get_task("mbpp_sanitized", protocol="t3d")
    with pytest.raises(ValueError, match="a.jsonl: holds its problems itself; leave out data"):
        get_task("a.jsonl", data=tmp_path)
    with pytest.raises(ValueError, match="unknown protocol 'own'; choose one of standard, t3d"):
        get_task("gsm8k", protocol="own")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match="unknown task 'gsm'; choose one of mini_gsm, mini_week, gsm8k"
    ):
        get_task("gsm")
    with pytest.raises(ValueError, match="gsm8k_test.jsonl: there is no such file; run `t3d data"):
        get_task("gsm8k", data=tmp_path).examples("test", 1)
