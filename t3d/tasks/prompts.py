"""A user's own prompts: one a line, as JSON or as plain text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from t3d.tasks.base import Example, Grader


def load_prompts(path: Path) -> list[Example]:
    """Prompts of a `.jsonl` or `.txt` file, in the file's order; blank lines are skipped.

    A line of `.jsonl` is an object with `question` (or `prompt`) and, optionally, `id`,
    `answer` and `grader`; other keys are ignored. An id defaults to `<file's stem>/<line number>`.

    Raises:
        ValueError: naming the file and the line, for whatever cannot be taken.
    """
    parsers = {".jsonl": _from_json, ".txt": lambda line: (None, line.strip(), None, None)}
    if path.suffix not in parsers:
        raise ValueError(f"{path}: prompts come as .jsonl or .txt, not {path.suffix or 'neither'}")
    try:
        # A byte order mark is no part of the first prompt.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: prompts cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    examples: list[Example] = []
    lines: dict[str, int] = {}
    # Not splitlines(), which also splits at separators that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            name, question, answer, grader = parsers[path.suffix](line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        name = f"{path.stem}/{number}" if name is None else name
        if name in lines:
            raise ValueError(
                f"{path}, line {number}: the id {name!r} is already that of line {lines[name]}"
            )
        lines[name] = number
        examples.append(Example(name, question, answer, grader=grader))
    if not examples:
        raise ValueError(f"{path}: holds no prompts")
    return examples


def _from_json(line: str) -> tuple[str | None, str, str | None, Grader | None]:
    """Id, question, answer and grader of one line."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {line.strip()[:40]}")
    key = next((key for key in ("question", "prompt") if key in row), None)
    if key is None:
        raise ValueError(f"needs the key 'question' or 'prompt', has {', '.join(row) or 'none'}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f"{key!r} must be a text that is not blank, got {row[key]!r}")
    grader = row.get("grader")
    if grader not in (None, *get_args(Grader)):
        raise ValueError(f"'grader' must be {' or '.join(get_args(Grader))}, got {grader!r}")
    return _scalar(row, "id"), row[key], _scalar(row, "answer"), grader


def _scalar(row: dict[str, object], key: str) -> str | None:
    """A text or a number, as text; null counts as absent."""
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{key!r} must be a text or a number, got {value!r}")
