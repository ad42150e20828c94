"""A user's own prompts: one a line, as JSON or as plain text."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from t3d.core.suggest import did_you_mean
from t3d.grading.code import Program
from t3d.tasks.base import Domain, Example, Grader
from t3d.tasks.records import check_text, parse_lines, read_json_lines, read_lines

_KEYS = (
    *("question", "prompt", "id", "answer", "reference", "grader", "domain", "prompt_prefix"),
    *("tests", "test_setup", "test_input", "test_output", "time_limit_s"),
)


def numbered_prompts(path: Path) -> dict[int, Example]:
    """Prompts of a `.jsonl` or `.txt` file by line number, in its order; blank lines are skipped.

    A line of `.jsonl` is an object with `question` (or `prompt`) and, optionally, `id`, `answer`,
    `reference` and `grader`, which are those of `Example`. With the `domain` code it asks for a
    program: `prompt_prefix`, `tests`, `test_setup` and `time_limit_s` are those of `Record`, and of
    a main program the lists `test_input` and `test_output` stand in the place of tests. Other keys
    are ignored, but for misspelt ones. An id defaults to `<file's stem>/<line number>`.

    Raises:
        ValueError: naming the file and the line, for whatever cannot be taken.
    """
    if path.suffix not in (".jsonl", ".txt"):
        raise ValueError(f"{path}: prompts come as .jsonl or .txt, not {path.suffix or 'neither'}")
    is_json = path.suffix == ".jsonl"

    def parse(row: Any, number: int) -> Example:
        default = f"{path.stem}/{number}"
        return _from_json(row, default) if is_json else Example(default, row.strip())

    rows = read_json_lines(path) if is_json else read_lines(path)
    return parse_lines(path, rows, parse, "prompts")


def _from_json(row: Any, default_id: str) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {row!r:.40}")
    for key in row:
        # `question_id` is another word, and no misspelt `question`.
        near = [k for k in _KEYS if k not in row and k.count("_") == key.count("_")]
        if key not in _KEYS and (hint := did_you_mean(key, near, cutoff=0.82)):
            raise ValueError(f"unknown key {key!r}{hint}")
    key = next((key for key in ("question", "prompt") if key in row), None)
    if key is None:
        raise ValueError(f"needs the key 'question' or 'prompt', has {', '.join(row) or 'none'}")
    question = check_text(row[key], key)
    answer, grader = _scalar(row, "answer"), row.get("grader")
    if answer is not None and not answer.strip():
        raise ValueError("'answer' is blank, which no answer equals; fill it in or drop the key")
    if grader not in (None, *get_args(Grader)):
        raise ValueError(f"'grader' must be {' or '.join(get_args(Grader))}, got {grader!r}")
    reference = row.get("reference")
    if reference is not None:
        check_text(reference, "reference")
    domain = row.get("domain") or "math"
    if domain not in get_args(Domain):
        raise ValueError(f"'domain' must be {' or '.join(get_args(Domain))}, got {domain!r}")
    name = _scalar(row, "id")
    example = Example(
        default_id if name is None else name, question, answer, reference, grader=grader
    )
    return example if domain == "math" else _with_tests(example, row)


def _with_tests(example: Example, row: dict[str, Any]) -> Example:
    """The example of a programming problem."""
    lists = [row.get(key) or [] for key in ("tests", "test_input", "test_output")]
    for key, value in zip(("tests", "test_input", "test_output"), lists, strict=True):
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{key!r} must be a list of texts")
    tests, inputs, outputs = lists
    if len(inputs) != len(outputs):
        raise ValueError(
            f"'test_input' has {len(inputs)} texts and 'test_output' {len(outputs)}; give each "
            "input its output"
        )
    prefix, setup = (row.get(key) or "" for key in ("prompt_prefix", "test_setup"))
    for key, value in (("prompt_prefix", prefix), ("test_setup", setup)):
        if not isinstance(value, str):
            raise ValueError(f"{key!r} must be a text")
    limit = 1.0 if row.get("time_limit_s") is None else row["time_limit_s"]
    if not isinstance(limit, int | float):
        raise ValueError("'time_limit_s' must be a number of seconds")
    cases = tuple(zip(inputs, outputs, strict=True))
    program = Program("", tuple(tests), setup, float(limit), cases) if tests or cases else None
    return replace(example, prefix=prefix, domain="code", program=program)


def _scalar(row: dict[str, Any], key: str) -> str | None:
    """A text or a number, as text; null counts as absent."""
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        # Positionally: mathematics takes the e of 1e-05 for a name.
        return f"{Decimal(str(value)):f}"
    raise ValueError(f"{key!r} must be a text or a finite number, got {value!r}")
