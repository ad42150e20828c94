"""A results.json from elsewhere: whatever no evaluation gives is refused, and its row named."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.cli.common import distinct_rows
from t3d.decoding.config import DecodingConfig
from t3d.evaluation.results import ResultRow, load_results, save_results
from tests.row import decoding_configs, make_row

ROW = make_row()


def write(path: Path, **changed: Any) -> None:
    save_results(path, [ROW, ROW], {})
    document = json.loads(path.read_text())
    document["rows"][1] |= changed
    path.write_text(json.dumps(document))


@given(st.lists(st.tuples(decoding_configs(), st.sampled_from([None, True, False])), max_size=3))
def test_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, settings: list[tuple[DecodingConfig, bool | None]]
) -> None:
    path = tmp_path_factory.mktemp("results") / "results.json"
    rows = [make_row(**asdict(setting), recommended=mark) for setting, mark in settings]
    save_results(path, rows, {"packages": {}})
    assert load_results(path) == rows
    document = json.loads(path.read_text())
    assert document["format"] == 2
    # A setting's fields stand among the others.
    for row, found in zip(rows, document["rows"], strict=True):
        assert found.items() >= asdict(row.decoding).items()


@pytest.mark.parametrize("recommended", [{}, {"recommended": True}])
def test_a_file_of_the_first_format_is_read(tmp_path: Path, recommended: dict[str, bool]) -> None:
    """Its rows had five fields of the setting, and no threshold where the strategy has none."""
    common: dict[str, Any] = {
        "task": "gsm8k",
        "method": "rtd",
        "seed": 3,
        "model": "runs/x/checkpoints/rtd",
        "block_size": 8,
        "denoising_steps": 2,
        "temperature": 0.5,
        "accuracy": 0.5,
        "n": 4,
        "ci95": [0.25, 0.75],
        "tokens_per_forward": 2.5,
        "tokens_per_pass": 2.0,
        "passes": 40,
        "average_steps": 9.0,
        "average_length": 20.0,
        "truncated": 0.25,
        "agreement": 0.75,
        "tokens_per_second": 100.0,
        "latency_seconds": 0.5,
        "optimizer_steps": 70,
        "tokens_seen": 900,
        **recommended,
    }
    rows = [
        common | {"remasking": "low_confidence_static", "confidence_threshold": None},
        common | {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.8},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format": 1, "provenance": {}, "rows": rows}))
    static, dynamic = load_results(path)
    assert static.decoding == DecodingConfig(8, 2, temperature=0.5)
    assert dynamic.decoding == DecodingConfig(8, 2, "low_confidence_dynamic", 0.8, 0.5)
    assert (static.method, static.seed, static.ci95) == ("rtd", 3, (0.25, 0.75))
    assert static.recommended is recommended.get("recommended")
    assert static.faithful is None


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for document in ({"format": 3, "rows": []}, {"rows": []}, []):
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match="not a results file of format 1 or 2"):
            load_results(path)


@pytest.mark.parametrize("key", ["block_size", "temperature", "task", "tokens_seen", "whatever"])
def test_missing_and_unknown_keys_are_named(tmp_path: Path, key: str) -> None:
    save_results(tmp_path / "results.json", [ROW, ROW], {})
    document = json.loads((tmp_path / "results.json").read_text())
    row = document["rows"][1]
    # What is there goes, what is not comes.
    document["rows"][1] = (
        {k: v for k, v in row.items() if k != key} if key in row else row | {key: 1}
    )
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"row 1 has missing or unknown keys: {key}$"):
        load_results(tmp_path / "results.json")


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
        *[("denoising_steps", value) for value in (0, -4, "4", None)],
        *[("top_p", value) for value in (0, 1.5, None)],
        ("recommended", "yes"),
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
    "key",
    [
        field.name
        for field in (*fields(ResultRow), *fields(DecodingConfig))
        if re.search(r"\b(int|float)\b", str(field.type))
    ],
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
