"""A results.json from elsewhere: whatever no evaluation gives is refused, and its row named."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from t3d.cli.common import distinct_rows
from t3d.evaluation.results import ResultRow, load_results, save_results

ROW = ResultRow(
    task="mini_gsm",
    method="original",
    seed=0,
    model="m",
    block_size=4,
    remasking="low_confidence_static",
    denoising_steps=4,
    confidence_threshold=None,
    temperature=0.1,
    accuracy=0.5,
    n=10,
    ci95=(0.2, 0.8),
    tokens_per_forward=1.0,
    tokens_per_pass=1.0,
    passes=10,
    average_steps=4.0,
    average_length=4.0,
    truncated=0.0,
    agreement=None,
    tokens_per_second=100.0,
    latency_seconds=None,
    optimizer_steps=0,
    tokens_seen=0,
)


def write(path: Path, **changed: Any) -> None:
    save_results(path, [ROW, ROW], {})
    document = json.loads(path.read_text())
    document["rows"][1] |= changed
    path.write_text(json.dumps(document))


def test_a_row_comes_back(tmp_path: Path) -> None:
    save_results(tmp_path / "results.json", [ROW], {})
    assert load_results(tmp_path / "results.json") == [ROW]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("accuracy", value) for value in (math.nan, "0.5", None, 50, -0.1, True, [0.5])],
        *[("tokens_per_second", value) for value in (-5, 1e308, math.inf, None, "fast")],
        *[("tokens_per_forward", value) for value in (-1, math.nan, 1e300)],
        *[("ci95", value) for value in (None, 3, [0.1], [0.1, 2.0], ["a", "b"], [math.nan, 1])],
        *[("n", value) for value in (0, 2.5, "3", None)],
        *[("latency_seconds", value) for value in (-1, math.inf)],
        *[("method", value) for value in (3, None, ["a"])],
        *[("denoising_steps", value) for value in (0, -4)],
        ("timed_out", 2),
        ("seed", "zero"),
    ],
)
def test_what_no_evaluation_gives_is_refused_by_row_and_key(
    tmp_path: Path, key: str, value: object
) -> None:
    write(tmp_path / "results.json", **{key: value})
    with pytest.raises(ValueError, match=rf"results.json: row 1: {key} must "):
        distinct_rows([tmp_path])


@pytest.mark.parametrize(
    "key", [f.name for f in fields(ResultRow) if re.search(r"\b(int|float)\b", str(f.type))]
)
def test_every_number_of_a_row_has_a_range(tmp_path: Path, key: str) -> None:
    write(tmp_path / "results.json", **{key: [math.nan, 1] if key == "ci95" else math.nan})
    with pytest.raises(ValueError, match=rf"results.json: row 1: {key} must be a "):
        load_results(tmp_path / "results.json")


@pytest.mark.parametrize("rows", [None, 3, {}, [3], [None], "rows"])
def test_rows_that_are_none(tmp_path: Path, rows: object) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"format": 1, "rows": rows}))
    with pytest.raises(ValueError, match=r"results.json: rows must be a list of objects"):
        load_results(tmp_path / "results.json")
