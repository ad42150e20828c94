"""One problem of a benchmark as it lies in a data folder: a line of JSONL with fixed keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Any, TypeVar, get_origin, get_type_hints

from t3d.core.files import parse_json, read_file
from t3d.tasks.base import Example


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line; every key is always there."""

    id: str
    dataset: str
    split: str
    """train or test."""
    domain: str
    """math or code."""
    question: str
    answer: str | None = None
    """The gold final answer; null for code."""
    prompt_prefix: str | None = None
    """How T3D's authors begin the assistant's turn; code only."""
    test_method: str | None = None
    """`function` for code, `stdio` for a `StdioRecord`."""
    tests: list[str] = field(default_factory=list)
    """The authors' tests: Python, run one after another after the program."""
    test_setup: str = ""
    """Python between program and tests."""
    time_limit_s: int | float | None = None
    """Seconds for one program with its tests; code only."""
    entry_point: str | None = None
    """The function that the tests call."""
    reference: str | None = None
    """The gold solution or program."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What only this benchmark has."""
    source: str
    license: str


@dataclass(frozen=True, kw_only=True)
class StdioRecord(Record):
    """One line whose program reads stdin and writes stdout; a question of one's own reads it."""

    test_input: list[str]
    test_output: list[str]


Needs = Mapping[str, type | UnionType]
"""Keys with their types; `meta.level` is the key `level` of `meta`."""

SCHEMA: Needs = {
    key: get_origin(kind) if isinstance(kind, GenericAlias) else kind
    for key, kind in get_type_hints(Record).items()
}
Problem = TypeVar("Problem", Record, Example)


def read_records(path: Path, needs: Needs) -> list[Record]:
    """The records of a file, in its order.

    Args:
        needs: keys that a protocol reads beyond the schema's, or with a narrower type.

    Raises:
        ValueError: naming file, line and key, for whatever is not as the schema has it.
    """
    rows = read_json_lines(path)
    return list(parse_lines(path, rows, lambda row, _: _parse(row, needs), "problems").values())


def parse_lines(
    path: Path,
    rows: Iterable[tuple[int, Any]],
    parse: Callable[[Any, int], Problem],
    what: str,
) -> dict[int, Problem]:
    """The problems of a file by the numbers of their lines, in its order.

    Args:
        path: the file.
        rows: its line numbers and values.
        parse: makes a problem of a value and its line number.
        what: the problems' name in messages.

    Raises:
        ValueError: naming the line for what `parse` refuses and for an id that is there twice; for
            a file without problems.
    """
    found: dict[int, Problem] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        try:
            problem = parse(row, number)
            if problem.id in lines:
                line = lines[problem.id]
                raise ValueError(f"the id {problem.id!r} is already that of line {line}")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        found[number], lines[problem.id] = problem, number
    if not found:
        raise ValueError(f"{path}: holds no {what}")
    return found


def read_text(path: Path) -> str:
    """The text of a file; a byte order mark is none.

    Raises:
        ValueError: naming the file.
    """
    try:
        return read_file(path).decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines; blank ones are skipped.

    Raises:
        ValueError: naming the file.
    """
    # Not splitlines(), which also splits at separators that JSON strings may hold.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers from 1 and values; blank lines are skipped.

    Raises:
        ValueError: naming the file and, where known, the line.
    """
    for number, line in read_lines(path):
        try:
            yield number, parse_json(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


def _parse(row: Any, needs: Needs) -> Record:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for key, kind in [*SCHEMA.items(), *needs.items()]:
        owner, _, inner = key.rpartition(".")
        values = row[owner] if owner else row
        if inner not in values:
            hint = (
                "; files converted from the authors' format serve the protocol t3d alone"
                if owner
                else ""
            )
            raise ValueError(f"lacks the key {key!r}{hint}")
        if not isinstance(values[inner], kind):
            name = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ValueError(f"{key!r} must be {name}, got {values[inner]!r:.60}")
    if not all(isinstance(test, str) for test in row["tests"]):
        raise ValueError("'tests' must be a list of texts")
    return Record(**{key: row[key] for key in SCHEMA})


def check_text(value: Any, key: str) -> str:
    """A text that is not blank; ValueError, naming the key, for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} must be a text that is not blank, got {value!r:.60}")
    return value


def to_jsonl(records: Iterable[Record]) -> bytes:
    lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    return "".join(lines).encode()


def content_digest(records: Sequence[Record]) -> str:
    """sha256 over all records without `source` and `license`, in order, as sorted-key JSON."""
    digest = hashlib.sha256()
    for record in records:
        row = asdict(record)
        del row["source"], row["license"]
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
