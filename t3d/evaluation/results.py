"""The one row of results, and the file that holds them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3d.provenance import parse_json, read_file
from t3d.ranges import check_ranges

FORMAT = 1
STATIC = "low_confidence_static"
DYNAMIC = "low_confidence_dynamic"
ORIGINAL = "original"
_RANGES = {
    "(-inf, inf)": "seed",
    "[1, inf)": "block_size denoising_steps n",
    "[0, 1]": "accuracy ci95 truncated agreement string_accuracy no_answer timed_out faithful "
    "confidence_threshold",
    "[0, inf)": "temperature passes average_steps average_length latency_seconds optimizer_steps "
    "tokens_seen",
    # No machine is so fast, and figures of what is cannot be drawn.
    "[0, 1e+12)": "tokens_per_forward tokens_per_pass tokens_per_second",
}


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One checkpoint, one task, one decoding setting. Keys are always present."""

    task: str
    method: str
    seed: int
    model: str
    block_size: int
    """Tokens that are decoded together: the block's, or the window's in semi-autoregressive
    decoding."""
    remasking: str
    denoising_steps: int
    confidence_threshold: float | None
    """None where the strategy has no threshold."""
    temperature: float
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
    """All forward passes, summed over requests."""
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
    string_accuracy: float | None = None
    """Share of answers that equal the gold answer as strings; None where it is not graded so."""
    no_answer: float | None = None
    """Share of outputs without a final answer; None in files of earlier versions."""
    timed_out: float | None = None
    """Share of outputs whose grading ran out of time; None in files of earlier versions."""
    faithful: float | None = None
    """Share of responses that speak of what the question does, in true equations; None where that
    is not graded, as in files of earlier versions."""

    @property
    def tokens_per_step(self) -> float:
        """The nominal speed-up: block_size / denoising_steps."""
        return self.block_size / self.denoising_steps


@dataclass(frozen=True, kw_only=True)
class ComparisonRow(ResultRow):
    """A row of a comparison of methods; the key `recommended` is in all rows of a file or none."""

    recommended: bool
    """Whether `method` is the one that the comparison recommends."""


@dataclass(frozen=True)
class Cell:
    """One checkpoint under one decoding setting."""

    row: ResultRow
    correct: tuple[bool, ...]
    """Per problem; the same problems in the same order for every cell of a task."""

    def __post_init__(self) -> None:
        assert self.row.n == len(self.correct) > 0


@dataclass(frozen=True)
class Condition:
    """What methods are compared under: a task and a decoding setting."""

    task: str
    block_size: int
    remasking: str
    denoising_steps: int
    confidence_threshold: float | None
    temperature: float

    @classmethod
    def of(cls, row: ResultRow) -> Condition:
        return cls(**{field.name: getattr(row, field.name) for field in dataclasses.fields(cls)})

    @property
    def tokens_per_step(self) -> float:
        """The nominal speed-up: block_size / denoising_steps."""
        return self.block_size / self.denoising_steps

    @property
    def full(self) -> Condition:
        """The static setting of one token a step with the same block size and temperature."""
        return dataclasses.replace(
            self,
            remasking=STATIC,
            denoising_steps=self.block_size,
            confidence_threshold=None,
        )

    @property
    def rank(self) -> tuple[str, float, int, bool, str, float, float]:
        """By task, temperature and block size; static first, slow before fast."""
        # A lower threshold is faster.
        threshold = -(self.confidence_threshold or 0.0)
        speed = (self.remasking != STATIC, self.remasking, self.tokens_per_step, threshold)
        return self.task, self.temperature, self.block_size, *speed


def save_results(path: Path, rows: Sequence[ResultRow], provenance: dict[str, Any]) -> None:
    """Write `results.json` atomically."""
    document = {
        "format": FORMAT,
        "provenance": provenance,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def load_results(path: Path) -> list[ResultRow]:
    """Read `results.json`; the rows of a comparison are `ComparisonRow`s.

    Raises:
        ValueError: if the file is missing, is no results file, or naming the row that has unknown
            or missing keys, or values that no evaluation gives.
    """
    try:
        document = parse_json(read_file(path).decode())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such results file; make one with `t3d eval`") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a results file: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path}: not a results file of format {FORMAT}")
    found = document.get("rows")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path}: rows must be a list of objects; make the file again")
    kind = ComparisonRow if any("recommended" in row for row in found) else ResultRow
    names = {field.name for field in dataclasses.fields(kind)}
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    rows: list[ResultRow] = []
    for number, row in enumerate(found):
        where = f"{path}: row {number}"
        if not required <= set(row) <= names:
            wrong = ", ".join(sorted((required - set(row)) | (set(row) - names)))
            raise ValueError(f"{where} has missing or unknown keys: {wrong}")
        interval = row["ci95"]
        pair = tuple(interval) if isinstance(interval, list) else ()
        rows.append(kind(**{**row, "ci95": pair}))
        _check(rows[-1], f"{where}: ")
    return rows


def _check(row: ResultRow, where: str) -> None:
    """That a row from elsewhere is one: numbers in their ranges, texts and truth values as such."""
    check_ranges(row, _RANGES, where=where)
    if len(row.ci95) != 2:
        raise ValueError(f"{where}ci95 must be two numbers, got {row.ci95!r}")
    for field in dataclasses.fields(row):
        value, wanted = getattr(row, field.name), {"str": str, "bool": bool}.get(str(field.type))
        if wanted is not None and not isinstance(value, wanted):
            raise ValueError(f"{where}{field.name} must be of type {field.type}, got {value!r}")
