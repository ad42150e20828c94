from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from t3d.tasks import get_task
from t3d.tasks.protocols import t3d_code
from t3d.tasks.upstream import convert_upstream

from .conftest import RECORDS

STDIO = {
    "question": "Add.",
    "test_method": "stdio",
    "test_input": ["1 2\n"],
    "test_output": ["3\n"],
    "test_time_limit": 1,
}


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_code_becomes_the_same_prompts_and_tests(name: str, tmp_path: Path, folder: Path) -> None:
    file = {"mbpp": "mbpp_test.jsonl", "humaneval": "humaneval.jsonl"}[name]
    ours = get_task(name, data=folder, protocol="t3d").examples("test", 100)
    records = [r for r in RECORDS[file] if r.meta.get("in_t3d", True)]
    rows = [
        {
            "question": record.question,
            "test_list": record.tests,
            "test_time_limit": 1,
            "test_method": "function",
            "prefix": record.prompt_prefix,
        }
        for record in records
    ]
    assert convert_upstream(write(tmp_path / "a.json", rows), tmp_path / file, name) == len(ours)
    task = get_task(name, data=tmp_path, protocol="t3d")
    theirs = task.examples("test", 100)
    assert [e.verbatim for e in theirs] == [e.verbatim for e in ours]
    assert [e.id for e in theirs] == [f"{name}/upstream/{i}" for i in range(len(ours))]
    outputs = [e.reference or "" for e in ours]
    assert [grade.correct for grade in task.grade(theirs, outputs)] == [
        grade.correct for grade in get_task(name, data=folder, protocol="t3d").grade(ours, outputs)
    ]
    with pytest.raises(
        ValueError, match=f"{file}, line 1: .* serve the protocol t3d alone|must be"
    ):
        get_task(name, data=tmp_path).examples("test", 1)


def test_math_is_a_task_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"question": "What is 1 + 1?", "ground_truth_answer": "2", "level": 5},
        {"question": "Why?", "ground_truth_answer": ""},
    ]
    output = tmp_path / "math_train.jsonl"
    assert convert_upstream(write(tmp_path / "MATH.json", rows), output, "math") == 2
    first, second = get_task(str(output), protocol="t3d").examples("train", 10)
    assert (first.id, first.answer, second.answer) == ("math/upstream/0", "2", None)
    assert first.verbatim is not None
    assert first.verbatim.startswith("<|im_start|>user\nWhat is 1 + 1?\nPlease reason")
    record = json.loads(output.read_text().splitlines()[0])
    assert (record["split"], record["meta"]) == ("train", {"level": 5})


def test_main_programs_are_a_task_of_their_own(tmp_path: Path) -> None:
    output = tmp_path / "primeintellect.jsonl"
    function = {"question": "f", "test_list": ["assert f() == 1"], "test_time_limit": 1}
    rows = [STDIO, function | {"prefix": "Here:\n```python\ndef f():\n"}]
    assert convert_upstream(write(tmp_path / "a.json", rows), output, "prime") == 2
    task = get_task(str(output), protocol="t3d")
    stdio, called = task.examples("test", 2)
    assert stdio.verbatim == (
        "<|im_start|>user\nThis is the problem:\nAdd.\nYou should put your code in "
        "```python ```. Use input() to read input and print() to produce output in your script. "
        "<|im_end|>\n<|im_start|>assistant"
    )
    assert called.verbatim == t3d_code("f", "Here:\n```python\ndef f():\n")
    outputs = ["So ```python\nprint(sum(map(int, input().split())))\n```", "    return 1\n```"]
    assert [grade.correct for grade in task.grade([stdio, called], outputs)] == [True, True]
    assert [grade.correct for grade in task.grade([called, stdio], outputs)] == [False, False]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, ": must be a JSON list of problems"),
        ([], ": must be a JSON list of problems"),
        (["a"], ", entry 0: not a JSON object"),
        ([{"question": "a"}], ", entry 0: lacks the key 'ground_truth_answer'"),
        ([{"question": 1, "ground_truth_answer": "a"}], ", entry 0: 'question' has the wrong"),
        ([{"question": "a", "test_list": [1]}], ", entry 0: 'test_list' must be a list of texts"),
        (
            [{"question": "a", "test_list": ["a"], "test_method": "file"}],
            ", entry 0: 'test_method' must be 'function' or 'stdio', got 'file'",
        ),
        ([STDIO | {"test_input": []}], ", entry 0: 'test_input' must be a list of texts that is"),
        ([STDIO | {"test_output": ["a", "b"]}], ", entry 0: 'test_input' and 'test_output' must"),
        ([{"question": "a", "test_list": ["a"]}], ", entry 0: lacks the key 'prefix'"),
    ],
)
def test_errors_name_the_entry(tmp_path: Path, rows: Any, message: str) -> None:
    source = write(tmp_path / "a.json", rows)
    with pytest.raises(ValueError, match="^" + re.escape(f"{source}{message}")):
        convert_upstream(source, tmp_path / "b.jsonl", "a")
    assert not (tmp_path / "b.jsonl").exists()


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(ValueError, match="a.json: not JSON"):
        convert_upstream(tmp_path / "a.json", tmp_path / "b.jsonl", "a")
    with pytest.raises(ValueError, match="c.json: cannot be read: No such file"):
        convert_upstream(tmp_path / "c.json", tmp_path / "b.jsonl", "a")
