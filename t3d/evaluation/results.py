"""The one row of results, and the file that holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3d.core.files import parse_json, read_file, write_json
from t3d.core.ranges import check_ranges
from t3d.decoding.config import DecodingConfig

FORMAT = 2
"""Version of the file format. Version 1 had five fields of the decoding setting; the others are
read as their defaults."""
ORIGINAL = "original"
_SETTING = {"block_size", "denoising_steps", "remasking", "temperature"}
"""Fields of the decoding setting that every version has."""
_KINDS = {"str": str, "bool | None": (bool, type(None))}
_RANGES = {
    "(-inf, inf)": "seed",
    "[1, inf)": "n",
    "[0, 1]": "accuracy ci95 truncated agreement string_accuracy no_answer timed_out faithful "
    "accepted",
    "[0, inf)": "passes average_steps average_length latency_seconds optimizer_steps tokens_seen "
    "tokens_computed tokens_decoded",
    # The bound is far above any machine; larger numbers could not be drawn in figures.
    "[0, 1e+12)": "tokens_per_forward tokens_per_pass tokens_per_second",
}


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One checkpoint, one task, one decoding setting.

    In a file, the setting's fields stand among the others.
    """

    task: str
    method: str
    seed: int
    model: str
    decoding: DecodingConfig
    accuracy: float
    """Share of correct answers, 0 to 1; of the generated tasks, right and faithful ones."""
    n: int
    ci95: tuple[float, float]
    """Wilson interval of the accuracy."""
    tokens_per_forward: float
    """Tokens up to and including the stop token over denoising passes."""
    tokens_per_pass: float
    """The same tokens over all passes, prefill and commits included."""
    passes: int
    """Number of forward passes of every kind, summed over requests."""
    average_steps: float
    """Denoising passes per request."""
    average_length: float
    """Response tokens per request, stop token included."""
    truncated: float
    """Share of responses cut at the token limit."""
    agreement: float | None
    """Share of problems whose final answer equals the full-step teacher's; None if unknown."""
    tokens_per_second: float
    latency_seconds: float | None
    """Mean seconds a request at batch 1; None if not measured."""
    optimizer_steps: int
    tokens_seen: int
    """Tokens of the sequences that training read, each time it did, whatever the views of them."""
    dtype: str = "float32"
    """Number format in which the model decoded; files of earlier versions are float32."""
    string_accuracy: float | None = None
    """Share of answers that equal the gold answer as strings; None where it is not graded so."""
    no_answer: float | None = None
    """Share of outputs without a final answer; None in files of earlier versions."""
    timed_out: float | None = None
    """Share of outputs whose grading ran out of time; None in files of earlier versions."""
    faithful: float | None = None
    """Share of responses that speak of what the question does, in true equations; None where that
    is not graded, as in files of earlier versions."""
    tokens_computed: int | None = None
    """Number of tokens that the passes computed, prompts included; None in files of earlier
    versions."""
    accepted: float | None = None
    """Share of the drafted states to which decoding came; None where none were drafted."""
    tokens_decoded: int | None = None
    """Response tokens that were decoded for the training, the teacher's too; None if unknown."""
    recommended: bool | None = None
    """Whether `method` is the one that a comparison recommends; None outside of one."""


@dataclass(frozen=True)
class Cell:
    """One checkpoint under one decoding setting."""

    row: ResultRow
    correct: tuple[bool, ...]
    """Verdict on each problem; all cells of a task have the same problems in the same order."""

    def __post_init__(self) -> None:
        assert self.row.n == len(self.correct) > 0


@dataclass(frozen=True)
class Condition:
    """A task and a decoding setting, under which methods are compared."""

    task: str
    decoding: DecodingConfig
    """Decoding setting, with fields that have no effect at their defaults."""

    @classmethod
    def of(cls, row: ResultRow) -> Condition:
        return cls(row.task, row.decoding.effective)

    @property
    def full(self) -> Condition:
        """The static setting of one token a step."""
        return Condition(self.task, self.decoding.full)

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sort key: task, then decoding setting."""
        return self.task, *self.decoding.rank

    def document(self) -> dict[str, Any]:
        """The fields of task and setting in one JSON object."""
        return {"task": self.task, **dataclasses.asdict(self.decoding)}


def num_problems(rows: Sequence[ResultRow], what: str) -> dict[str, int]:
    """The number of problems of each task; `what` is the rows' name in messages.

    Raises:
        ValueError: for rows of a task that differ in it.
    """
    found = {row.task: row.n for row in rows}
    for row in rows:
        if row.n != found[row.task]:
            raise ValueError(
                f"task {row.task}: {what} of {row.n} and of {found[row.task]} problems; "
                "evaluate all on the same problems"
            )
    return found


def save_results(path: Path, rows: Sequence[ResultRow], provenance: dict[str, Any]) -> None:
    """Write `results.json` atomically."""
    document = {
        "format": FORMAT,
        "provenance": provenance,
        "rows": [row_document(row) for row in rows],
    }
    write_json(path, document)


def row_document(row: ResultRow) -> dict[str, Any]:
    """A row as JSON, the setting's fields in its place."""
    out: dict[str, Any] = {}
    for key, value in dataclasses.asdict(row).items():
        out |= value if key == "decoding" else {key: value}
    return out


def read_row(found: dict[str, Any], where: str) -> ResultRow:
    """A row from the JSON of `row_document`, of this version or an earlier one.

    Raises:
        ValueError: for unknown or missing keys, or values that no evaluation gives; the message
            begins with `where`.
    """
    setting = {field.name for field in dataclasses.fields(DecodingConfig)}
    names = {field.name: field for field in dataclasses.fields(ResultRow)}
    del names["decoding"]
    required = {name for name, field in names.items() if field.default is dataclasses.MISSING}
    required |= _SETTING
    if not required <= set(found) <= names.keys() | setting:
        wrong = ", ".join(sorted((required - set(found)) | (set(found) - names.keys() - setting)))
        raise ValueError(f"{where} has missing or unknown keys: {wrong}")
    own = {key: value for key, value in found.items() if key in setting}
    # Earlier versions had null where the strategy has no threshold.
    if own.get("confidence_threshold", 0) is None:
        del own["confidence_threshold"]
    try:
        decoding = DecodingConfig(**own)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    interval = found["ci95"]
    values = {name: found[name] for name in names if name in found}
    values |= {"ci95": tuple(interval) if isinstance(interval, list) else (), "decoding": decoding}
    row = ResultRow(**values)
    _check(row, f"{where}: ")
    return row


def load_results(path: Path) -> list[ResultRow]:
    """Read the rows of `results.json`.

    Raises:
        ValueError: if the file is missing, is no results file, or naming the row that has unknown
            or missing keys, or values that no evaluation gives.
    """
    found = _document(path).get("rows")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path}: rows must be a list of objects; make the file again")
    return [read_row(row, f"{path}: row {number}") for number, row in enumerate(found)]


def load_provenance(path: Path) -> dict[str, Any]:
    """Read the provenance of `results.json`.

    Raises:
        ValueError: if the file is missing or is no results file.
    """
    return dict(_document(path)["provenance"])


def _document(path: Path) -> dict[str, Any]:
    try:
        document = parse_json(read_file(path).decode())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such results file; make one with `t3d eval`") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a results file: {error}") from None
    if not isinstance(document, dict) or document.get("format") not in (1, FORMAT):
        raise ValueError(f"{path}: not a results file of format 1 or {FORMAT}")
    return document


def _check(row: ResultRow, where: str) -> None:
    """Check a row that was read: types of all values, and ranges of the numbers."""
    check_ranges(row, _RANGES, where=where)
    if len(row.ci95) != 2:
        raise ValueError(f"{where}ci95 must be two numbers, got {row.ci95!r}")
    for field in dataclasses.fields(row):
        value, wanted = getattr(row, field.name), _KINDS.get(str(field.type))
        if wanted is not None and not isinstance(value, wanted):
            raise ValueError(f"{where}{field.name} must be of type {field.type}, got {value!r}")
