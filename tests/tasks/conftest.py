"""Published rows of every benchmark in small, and a data folder made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t3d.tasks import convert
from t3d.tasks.records import Record, to_jsonl
from t3d.tasks.upstream import upstream_records

Row = dict[str, Any]

CLIP = (
    "LIMIT = 9\r\ndef floor(x): \r\n\treturn max(x, 0)\r\n"
    "def clip(x) : \r\n\treturn min(floor(x), LIMIT)"
)
PAIR = "class Pair:\n  def __init__(self, a):\n    self.a = a\ndef first(p):\n  return p.a"


def mbpp_row(task_id: int, **changes: Any) -> Row:
    row = {
        "task_id": task_id,
        "text": f"Add {task_id}.",
        "code": f"import math \n\ndef add(x):\n    return x + {task_id}",
        "test_list": [f"assert add(0) == {task_id} ", f"assert add(1) == {task_id + 1}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    return row | changes


def mbpp_rows(ids: range) -> list[Row]:
    """The first program has a helper and a constant, the last begins with a class."""
    helper = mbpp_row(
        ids[0],
        text="Clip a number.",
        code=CLIP,
        test_list=["assert clip(12) == 9"],
        challenge_test_list=["assert clip(-3) == 0"],
    )
    pair = mbpp_row(
        ids[-1],
        text="Take the first.",
        code=PAIR,
        test_list=["assert first(p) == 4"],
        test_setup_code="p = Pair(4)",
    )
    return [helper, *map(mbpp_row, ids[1:-1]), pair]


def sanitized_rows(ids: range) -> list[Row]:
    return [
        {
            "task_id": task_id,
            "prompt": f"Return x plus {task_id}.",
            "code": f"def plus(x):\n  return x + {task_id}",
            "test_imports": ["import math"],
            "test_list": [f"assert math.isclose(plus(1), {task_id + 1})"],
        }
        for task_id in ids
    ]


def gsm8k_rows(num: int) -> list[Row]:
    return [
        {
            "question": f"What is {n} + 1?",
            "answer": f"It is {n}+1 = <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}",
        }
        for n in range(num)
    ]


MATH500_ROWS: list[Row] = [
    {
        "problem": " Halve $x$. ",
        "solution": "It is \\boxed{\\frac{x}{2}}.",
        "answer": "\\frac{x}{2} ",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "test/algebra/7.json",
    }
]
HUMANEVAL_ROWS: list[Row] = [
    {
        "task_id": "HumanEval/3",
        "prompt": 'def double(x):\n    """ Twice x. """\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(4) == 8\n",
        "entry_point": "double",
    }
]
MATH_TRAIN_ROWS: list[Row] = [{"question": "1 + 1?", "ground_truth_answer": "2", "level": 3}]
PRIMEINTELLECT_ROWS: list[Row] = [
    {
        "question": "Add.",
        "test_method": "stdio",
        "test_input": ["1 2\n"],
        "test_output": ["3\n"],
        "test_time_limit": 5,
    }
]
RECORDS: dict[str, list[Record]] = {
    "gsm8k_train.jsonl": convert.gsm8k(gsm8k_rows(503), split="train", source="s"),
    "gsm8k_test.jsonl": convert.gsm8k(gsm8k_rows(4), split="test", source="s"),
    "math500.jsonl": convert.math500(MATH500_ROWS, source="s"),
    "humaneval.jsonl": convert.humaneval(HUMANEVAL_ROWS, source="s"),
    "mbpp_train.jsonl": convert.mbpp(
        mbpp_rows(range(1, 96)), sanitized_rows(range(1, 51)), split="train", source="s"
    ),
    "mbpp_test.jsonl": convert.mbpp(
        mbpp_rows(range(101, 106)), sanitized_rows(range(102, 104)), split="test", source="s"
    ),
    "math_train.jsonl": upstream_records(
        MATH_TRAIN_ROWS, dataset="math_train", split="train", source="s"
    ),
    "primeintellect.jsonl": upstream_records(
        PRIMEINTELLECT_ROWS, dataset="primeintellect", split="train", source="s"
    ),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's data folder."""
    folder = tmp_path_factory.mktemp("data")
    for file, records in RECORDS.items():
        (folder / file).write_bytes(to_jsonl(records))
    return folder
