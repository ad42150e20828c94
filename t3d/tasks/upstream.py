"""Files in the format of T3D's authors: a JSON list of problems, as MATH_train.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t3d.core.files import parse_json, write_bytes
from t3d.tasks.records import Record, read_text, to_jsonl


def convert_upstream(source: Path, output: Path, dataset: str) -> int:
    """Write a file of the authors' format as records, for a data folder or as a task of its own.

    A problem with `test_list` is code, one with `ground_truth_answer` is math. Code serves the
    protocol `t3d` only, since the format lacks what the other one reads.

    Args:
        source: a JSON list of objects.
        output: JSONL; a data folder takes it under the name that it gives the data set's file.
        dataset: the name of the data set; ids are `<dataset>/upstream/<index>`.

    Returns:
        How many problems there are.

    Raises:
        ValueError: naming file, entry and key, for whatever is not in that format.
    """
    text = read_text(source)
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{source}: not JSON ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{source}: must be a JSON list of problems")
    split = "train" if output.stem.endswith("_train") else "test"
    records: list[Record] = []
    for index, row in enumerate(rows):
        try:
            records.append(_convert(row, index, dataset, split, source.name))
        except ValueError as error:
            raise ValueError(f"{source}, entry {index}: {error}") from None
    write_bytes(output, to_jsonl(records))
    return len(records)


def _convert(row: Any, index: int, dataset: str, split: str, source: str) -> Record:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    is_code = "test_list" in row
    if is_code:
        if row.get("test_method", "function") != "function":
            raise ValueError(
                f"'test_method' must be 'function', got {row['test_method']!r}; leave it out"
            )
        tests = row["test_list"]
        if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
            raise ValueError("'test_list' must be a list of texts")
    answer = None if is_code else _value(row, "ground_truth_answer", str)
    return Record(
        id=f"{dataset}/upstream/{index}",
        dataset=dataset,
        split=split,
        domain="code" if is_code else "math",
        question=_value(row, "question", str),
        # An empty gold answer would call every other one wrong.
        answer=answer or None,
        prompt_prefix=_value(row, "prefix", str) if is_code else None,
        test_method="function" if is_code else None,
        tests=row["test_list"] if is_code else [],
        time_limit_s=_value(row, "test_time_limit", int | float) if is_code else None,
        meta={key: row[key] for key in ("level", "subject") if key in row}
        | ({"in_t3d": True} if is_code else {}),
        source=source,
        license="as its source",
    )


def _value(row: dict[str, Any], key: str, kind: Any) -> Any:
    if key not in row:
        raise ValueError(f"lacks the key {key!r}")
    if not isinstance(row[key], kind):
        raise ValueError(f"{key!r} has the wrong type: {row[key]!r:.60}")
    return row[key]
