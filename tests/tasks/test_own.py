"""How the answers to a user's own questions are compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from t3d.tasks import get_task
from t3d.tasks.protocols import code_turn, t3d_code
from t3d.tasks.records import SCHEMA

WRONG = (
    ("[1, 2, 3]", "[3, 1, 2]"),
    ("a, b, c", "c, b, a"),
    ("2026-03-04", "2026-04-03"),
    ("4 March 2026", "3 April 2026"),
    ("desserts", "stressed"),
    ("no", "on"),
    ("12:30", "30:12"),
    ("x", "X"),
    ("7", "8"),
    ("yes", "yes yes"),
)
RIGHT = (
    ("[1, 2, 3]", "[1, 2, 3]"),
    ("2026-03-04", " 2026-03-04 "),
    ("yes", "\\text{yes}"),
    ("New York", "\\text{New  York}"),
    ("1000", "1,000"),
    ("0.5", "\\frac{1}{2}"),
    ("1/2", "0.5"),
    ("50%", "50\\%"),
    ("-3", "-3"),
)


def test_what_is_no_number_is_compared_exactly(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    cases = [*((gold, box, False) for gold, box in WRONG), *((g, b, True) for g, b in RIGHT)]
    path.write_text("\n".join(json.dumps({"question": "?", "answer": g}) for g, _, _ in cases))
    task = get_task(str(path))
    examples = task.examples("test", len(cases))
    grades = task.grade(examples, [f"So \\boxed{{{box}}}." for _, box, _ in cases])
    assert [grade.correct for grade in grades] == [right for _, _, right in cases]
    assert not any(grade.correct for grade in task.grade(examples, ["nothing"] * len(cases)))


@pytest.mark.parametrize(
    ("grader", "correct"),
    [("math", [True, True]), ("exact", [False, False]), (None, [False, True])],
)
def test_a_line_names_its_grader(grader: str | None, correct: list[bool], tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question": "?", "answer": a, "grader": grader} for a in ("x + 1", "0.5")]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = get_task(str(path))
    grades = task.grade(task.examples("test", 2), ["\\boxed{1 + x}", "\\boxed{1/2}"])
    assert [grade.correct for grade in grades] == correct
    path.write_text('{"question": "?", "answer": "x", "grader": "fuzzy"}')
    with pytest.raises(ValueError, match="line 1: 'grader' must be exact or math, got 'fuzzy'"):
        get_task(str(path))


def folder(path: Path, **splits: list[dict[str, object]]) -> Path:
    path.mkdir(parents=True)
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_files_of_a_folder_are_the_splits(tmp_path: Path) -> None:
    known = {"question": "1?", "reference": "It is \\boxed{2}.", "answer": 2}
    path = folder(tmp_path / "mine", train=[known], test=[{"question": "2?", "answer": "b"}])
    task = get_task(str(path))
    [taught], [asked] = task.examples("train", 9), task.examples("test", 9)
    assert (taught.question, taught.answer, taught.reference) == ("1?", "2", known["reference"])
    assert (asked.id, asked.answer) == ("test/1", "b")
    with pytest.raises(ValueError, match="mine: has no dev.jsonl"):
        task.examples("dev", 9)
    with pytest.raises(ValueError, match="unknown task '.*none'; .*a folder that holds train"):
        get_task(str(tmp_path / "none"))


def test_splits_share_no_question(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": n} for n in range(3)]
    path = folder(tmp_path / "mine", train=rows[:2], test=rows[1:])
    with pytest.raises(ValueError, match="test.jsonl, line 1, asks what train.jsonl, line 2, asks"):
        get_task(str(path))


@pytest.mark.parametrize("other", ["How  many?", "how many?", " How many?\n"])
def test_two_tellings_of_a_question_are_one(other: str, tmp_path: Path) -> None:
    rows = [{"question": text, "answer": 1} for text in ("How many?", other)]
    for name, splits in (
        ("both", {"train": rows[:1], "test": rows[1:]}),
        ("twice", {"dev": [{"question": "Why?", "answer": 1}], "test": rows}),
    ):
        path = folder(tmp_path / name, **splits)
        with pytest.raises(ValueError, match=r"test.jsonl, line ., asks what .*, line 1, asks"):
            get_task(str(path))
    # Training may see it twice.
    path = folder(tmp_path / "train", train=rows, test=[{"question": "Why?", "answer": 1}])
    assert len(get_task(str(path)).examples("train", 9)) == 2


def test_results_tell_problems_of_one_file_name_apart(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": n} for n in range(3)]
    first = folder(tmp_path / "a" / "mine", test=rows[:1])
    second = folder(tmp_path / "b" / "mine", test=rows[:2])
    more = folder(tmp_path / "c" / "mine", train=rows[1:], test=rows[:1])
    one, two, same = (get_task(str(path)).name for path in (first, second, more))
    assert one == same != two
    assert one.startswith("mine@")
    assert get_task(str(first / "test.jsonl")).name == one.replace("mine", "test.jsonl")


CODE = {"question": "Add.", "domain": "code"}


def test_programs_are_asked_for_and_graded_by_their_tests(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        CODE | {"tests": ["assert f(n) == 3"], "test_setup": "n = 2", "time_limit_s": 0.5},
        CODE | {"test_input": ["1 2"], "test_output": ["3"]},
        {"question": "Add?", "answer": "3"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = get_task(str(path))
    examples = task.examples("test", 3)
    assert [e.question for e in examples[::2]] == [code_turn("Add."), "Add?"]
    assert examples[1].question == code_turn("Add.", stdio=True)
    function = "```python\ndef f(x): return x + 1\n```"
    main = "```python\nprint(sum(map(int, input().split())))\n```"
    grades = task.grade(examples * 2, [function, main, "\\boxed{3}", main, function, function])
    assert [grade.correct for grade in grades] == [True] * 3 + [False] * 3
    # Other tests are other problems.
    path.write_text("\n".join(map(json.dumps, rows)).replace("== 3", "== 4"))
    assert get_task(str(path)).name != task.name


def test_a_program_without_tests_is_a_prompt_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    prefix = "Here:\n```python\n"
    path.write_text("\n\n" + json.dumps(CODE | {"prompt_prefix": prefix}))
    task = get_task(str(path), protocol="t3d")
    [example] = task.examples("train", 1)
    assert (example.prefix, example.verbatim) == (prefix, t3d_code("Add.", prefix))
    [grade] = task.grade([example], ["x = 1\n```"])
    assert (grade.correct, grade.final_answer) == (False, "x = 1")
    with pytest.raises(ValueError, match="mine.jsonl, line 3: has nothing to grade a program by"):
        task.examples("test", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grade": "exact"}, "unknown key 'grade'; did you mean grader?"),
        ({"answers": "1"}, "unknown key 'answers'; did you mean answer?"),
        ({"test_inputs": []}, "unknown key 'test_inputs'; did you mean test_input?"),
        ({"domain": "coding"}, "'domain' must be math or code, got 'coding'"),
        ({"tests": "assert x"}, "'tests' must be a list of texts"),
        ({"test_input": ["1"]}, "'test_input' has 1 texts and 'test_output' 0"),
        ({"tests": ["x"], "time_limit_s": 0}, "time_limit_s is 0.0; it must be in"),
        ({"tests": ["x"], "test_input": ["1"], "test_output": ["1"]}, "a program has tests of"),
        ({"prompt_prefix": 1}, "'prompt_prefix' must be a text"),
    ],
)
def test_a_line_that_cannot_be_taken_is_named(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(CODE | changes))
    with pytest.raises(ValueError, match="line 1: " + re.escape(message)):
        get_task(str(path))


@pytest.mark.parametrize("key", [*SCHEMA, "question_id", "prompt_id", "level", "idx", "task_id"])
def test_keys_of_records_and_other_words_are_no_misspelt_ones(key: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({key: None, "prompt": "a", "question": "a"}))
    assert len(get_task(str(path)).examples("train", 9)) == 1
