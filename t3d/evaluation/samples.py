"""Samples of an evaluation as Parquet: prompt, output, step map and grade of every problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from t3d.core.files import check_regular, first_words, write_bytes
from t3d.core.shards import list_of, to_parquet
from t3d.decoding.request import Completion, Passes
from t3d.tasks import Grade


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One problem's output before it is graded."""

    example_id: str
    prompt: str
    """Text of the whole prompt, special tokens included."""
    prompt_ids: list[int]
    output: str
    """Text of the response, without its stop token."""
    completion: Completion
    rank: int = 0
    """Number of the process that decoded it."""
    seconds: float = 0.0
    """Share of that process's decoding time that falls to this output; the shares add up to the
        wall-clock time."""


@dataclass(frozen=True, kw_only=True)
class Sample(Decoded):
    """One problem's output and grade."""

    grade: Grade
    answer: str | None
    """The gold answer, where known."""


DECODED = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_ids", list_of(pa.int64()), nullable=False),
        pa.field("output", pa.string(), nullable=False),
        pa.field("response_ids", list_of(pa.int64()), nullable=False),
        pa.field("initial_ids", list_of(pa.int64()), nullable=False),
        pa.field("step_map", list_of(pa.int64()), nullable=False),
        pa.field("log_probs", list_of(pa.float32()), nullable=False),
        pa.field("num_response_tokens", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        *(pa.field(f"passes_{name.name}", pa.int64(), nullable=False) for name in fields(Passes)),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)
SAMPLES = pa.schema(
    [
        pa.field("setting", pa.string(), nullable=False),
        *DECODED,
        pa.field("answer", pa.string()),
        pa.field("final_answer", pa.string()),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("string_correct", pa.bool_()),
        pa.field("reason", pa.string()),
        pa.field("faithful", pa.bool_()),
    ]
)


def _columns(kind: Any) -> list[str]:
    """The fields of a dataclass that are columns as they stand."""
    return [field.name for field in fields(kind) if field.name not in ("completion", "passes")]


def decoded_row(decoded: Decoded) -> dict[str, Any]:
    """A row of the schema `DECODED`."""
    row = {name: getattr(decoded, name) for name in _columns(Decoded)}
    row |= vars(decoded.completion)
    passes = row.pop("passes")
    return row | {f"passes_{name}": number for name, number in vars(passes).items()}


def read_decoded(row: dict[str, Any]) -> Decoded:
    """The inverse of `decoded_row`, for a row of either schema."""
    passes = Passes(**{name: row[f"passes_{name}"] for name in _columns(Passes)})
    completion = Completion(**{name: row[name] for name in _columns(Completion)}, passes=passes)
    return Decoded(**{name: row[name] for name in _columns(Decoded)}, completion=completion)


def write_samples(path: Path, samples: Sequence[tuple[str, Sample]]) -> None:
    """Write samples with the names of their decoding settings as one Parquet file, atomically."""
    rows = [
        decoded_row(s) | asdict(s.grade) | {"answer": s.answer, "setting": setting}
        for setting, s in samples
    ]
    write_bytes(path, to_parquet(rows, SAMPLES))


def read_samples(path: Path) -> list[tuple[str, Sample]]:
    """The inverse of `write_samples`.

    Raises:
        ValueError: if it is no such file.
    """
    try:
        check_regular(path)
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: cannot be read ({first_words(error)}); delete its directory to evaluate anew"
        ) from None
    if not table.schema.equals(SAMPLES):
        raise ValueError(
            f"{path}: not the samples of this version; delete its directory to evaluate anew"
        )
    return [(row["setting"], _sample(row)) for row in table.to_pylist()]


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(
        **vars(read_decoded(row)),
        grade=Grade(**{name: row[name] for name in _columns(Grade)}),
        answer=row["answer"],
    )
