"""Files in the format of T3D's authors: a JSON list of problems, as MATH_train.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t3d.core.files import parse_json, write_bytes
from t3d.tasks.records import Record, StdioRecord, read_text, to_jsonl


def convert_upstream(source: Path, output: Path, dataset: str) -> int:
    """Write a file of the authors' format as records, for a data folder or as a task of its own.

    A problem with `test_list` is code, as is one of the `test_method` stdio; one with
    `ground_truth_answer` is math. In a data folder, code serves the protocol `t3d` only, since the
    format lacks what the other one reads.

    Args:
        source: a JSON list of objects.
        output: JSONL; a data folder takes it under the name that it gives the data set's file.
        dataset: the name of the data set; ids are `<dataset>/upstream/<index>`.

    Returns:
        How many problems there are.

    Raises:
        ValueError: naming file, entry and key, for whatever is not in that format.
    """
    rows = upstream_rows(source)
    split = "train" if output.stem.endswith("_train") else "test"
    try:
        records = upstream_records(rows, dataset=dataset, split=split, source=source.name)
    except ValueError as error:
        raise ValueError(f"{source}, {error}") from None
    write_bytes(output, to_jsonl(records))
    return len(records)


def upstream_rows(source: Path, what: str = "problems") -> list[Any]:
    """The items of a file; `what` is their name in messages.

    Raises:
        ValueError: naming the file, if it is no JSON list.
    """
    text = read_text(source)
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{source}: not JSON ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{source}: must be a JSON list of {what}, with at least one")
    return rows


def upstream_records(rows: list[Any], *, dataset: str, split: str, source: str) -> list[Record]:
    """Raises: ValueError naming entry and key, for whatever is not in the authors' format."""
    records: list[Record] = []
    for index, row in enumerate(rows):
        try:
            records.append(_convert(row, index, dataset, split, source))
        except ValueError as error:
            raise ValueError(f"entry {index}: {error}") from None
    return records


def _convert(row: Any, index: int, dataset: str, split: str, source: str) -> Record:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    method = row.get("test_method", "function")
    if method not in ("function", "stdio"):
        raise ValueError(f"'test_method' must be 'function' or 'stdio', got {method!r}")
    is_stdio = method == "stdio"
    is_code = is_stdio or "test_list" in row
    own: dict[str, Any]
    if is_stdio:
        own = {key: _texts(row, key) for key in ("test_input", "test_output")}
        if len(own["test_input"]) != len(own["test_output"]):
            raise ValueError("'test_input' and 'test_output' must be equally long")
    elif is_code:
        own = {"tests": _texts(row, "test_list"), "prompt_prefix": _value(row, "prefix", str)}
    else:
        # An empty gold answer would call every other one wrong.
        own = {"answer": _value(row, "ground_truth_answer", str) or None}
    if is_code:
        limit = _value(row, "test_time_limit", int | float)
        own |= {"test_method": method, "time_limit_s": limit}
    meta = {key: row[key] for key in ("level", "subject") if key in row}
    return (StdioRecord if is_stdio else Record)(
        id=f"{dataset}/upstream/{index}",
        dataset=dataset,
        split=split,
        domain="code" if is_code else "math",
        question=_value(row, "question", str),
        meta=meta | ({"in_t3d": True} if is_code else {}),
        source=source,
        license="as its source",
        **own,
    )


def _texts(row: dict[str, Any], key: str) -> list[str]:
    texts = _value(row, key, list)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} must be a list of texts that is not empty")
    return texts


def _value(row: dict[str, Any], key: str, kind: Any) -> Any:
    if key not in row:
        raise ValueError(f"lacks the key {key!r}")
    if not isinstance(row[key], kind):
        raise ValueError(f"{key!r} has the wrong type: {row[key]!r:.60}")
    return row[key]
