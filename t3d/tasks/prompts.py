"""A user's own prompts: one a line, as JSON or as plain text."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from t3d.tasks.base import Example, Grader
from t3d.tasks.records import read_json_lines, read_lines


def load_prompts(path: Path) -> list[Example]:
    """The examples of `numbered_prompts`."""
    return [example for _, example in numbered_prompts(path)]


def numbered_prompts(path: Path) -> list[tuple[int, Example]]:
    """Line numbers and prompts of a `.jsonl` or `.txt` file, in its order; blank lines are skipped.

    A line of `.jsonl` is an object with `question` (or `prompt`) and, optionally, `id`, `answer`,
    `reference` and `grader`, which are those of `Example`; other keys are ignored. An id defaults
    to `<file's stem>/<line number>`.

    Raises:
        ValueError: naming the file and the line, for whatever cannot be taken.
    """
    if path.suffix not in (".jsonl", ".txt"):
        raise ValueError(f"{path}: prompts come as .jsonl or .txt, not {path.suffix or 'neither'}")
    read = read_json_lines if path.suffix == ".jsonl" else read_lines
    examples: list[tuple[int, Example]] = []
    lines: dict[str, int] = {}
    for number, row in read(path):
        try:
            default = f"{path.stem}/{number}"
            is_json = path.suffix == ".jsonl"
            example = _from_json(row, default) if is_json else Example(default, row.strip())
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if example.id in lines:
            raise ValueError(
                f"{path}, line {number}: the id {example.id!r} is already that of line "
                f"{lines[example.id]}"
            )
        lines[example.id] = number
        examples.append((number, example))
    if not examples:
        raise ValueError(f"{path}: holds no prompts")
    return examples


def _from_json(row: Any, default_id: str) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {row!r:.40}")
    key = next((key for key in ("question", "prompt") if key in row), None)
    if key is None:
        raise ValueError(f"needs the key 'question' or 'prompt', has {', '.join(row) or 'none'}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f"{key!r} must be a text that is not blank, got {row[key]!r}")
    answer, grader = _scalar(row, "answer"), row.get("grader")
    if answer is not None and not answer.strip():
        raise ValueError("'answer' is blank, which no answer equals; fill it in or drop the key")
    if grader not in (None, *get_args(Grader)):
        raise ValueError(f"'grader' must be {' or '.join(get_args(Grader))}, got {grader!r}")
    reference = row.get("reference")
    if reference is not None and not (isinstance(reference, str) and reference.strip()):
        raise ValueError(f"'reference' must be a text that is not blank, got {reference!r:.60}")
    name = _scalar(row, "id")
    return Example(default_id if name is None else name, row[key], answer, reference, grader=grader)


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
