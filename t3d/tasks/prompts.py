"""A user's own prompts: one a line, as JSON or as plain text."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from t3d.tasks.base import Example, Grader
from t3d.tasks.records import check_text, parse_lines, read_json_lines, read_lines


def load_prompts(path: Path) -> list[Example]:
    """The examples of `numbered_prompts`."""
    return list(numbered_prompts(path).values())


def numbered_prompts(path: Path) -> dict[int, Example]:
    """Prompts of a `.jsonl` or `.txt` file by line number, in its order; blank lines are skipped.

    A line of `.jsonl` is an object with `question` (or `prompt`) and, optionally, `id`, `answer`,
    `reference` and `grader`, which are those of `Example`; other keys are ignored. An id defaults
    to `<file's stem>/<line number>`.

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
    name = _scalar(row, "id")
    return Example(default_id if name is None else name, question, answer, reference, grader=grader)


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
