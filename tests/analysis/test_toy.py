"""The toy: exact values against estimates, the inequalities, and the tables of the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.toy import BLOCK_SIZE, NUM_DIGITS, Toy, analyze_toy, build
from t3d.analysis.analyze import Analysis

DOCUMENT = Path(__file__).parents[2] / "docs" / "theory.md"


@pytest.fixture(scope="module")
def toy() -> Toy:
    return build()


@pytest.fixture(scope="module")
def exact(toy: Toy) -> dict[float, Analysis]:
    return {level: analyze_toy(toy, noise_level=level, exact=True) for level in (1.0, 0.5)}


def test_trajectories_are_runs_of_digits(toy: Toy) -> None:
    for t in toy.trajectories:
        assert sorted(t.step_map) == list(range(BLOCK_SIZE))
        assert all(token < NUM_DIGITS for token in t.response_ids)
    # What answers have in common, a run of digits, was learned: by chance it is one in 216.
    runs = [
        all(
            (b - a) % NUM_DIGITS == (1 if t.prompt_ids[1] == NUM_DIGITS else NUM_DIGITS - 1)
            for a, b in zip(t.response_ids, t.response_ids[1:], strict=False)
        )
        for t in toy.trajectories
    ]
    assert sum(runs) > 0.1 * len(runs)


def test_proposition_4_3(exact: dict[float, Analysis]) -> None:
    """Trained on visited states, a student has no higher on-policy risk."""
    begun, half = (exact[level].differences[1].on_policy_risk for level in (1.0, 0.5))
    assert half.ci95[1] < 0
    # Fully masked blocks belong to both students' training: no difference but noise.
    assert abs(begun.mean) < 0.05


def test_the_total_correlation_is_what_no_student_removes(exact: dict[float, Analysis]) -> None:
    for analysis in exact.values():
        floor = analysis.measurements[0].total_correlation.values
        for row in analysis.measurements:
            for risk, least in zip(row.on_policy_risk.values, floor, strict=True):
                assert risk >= least - 1e-10


def test_estimates_agree_with_exact_values(toy: Toy, exact: dict[float, Analysis]) -> None:
    estimated = analyze_toy(toy, noise_level=0.5, exact=False)
    for found, truth in zip(estimated.measurements, exact[0.5].measurements, strict=True):
        for name in ("on_policy_risk", "total_correlation"):
            values = torch.tensor(getattr(found, name).values)
            error = values - torch.tensor(getattr(truth, name).values)
            standard = float(error.std()) / len(error) ** 0.5
            assert abs(float(error.mean())) < 4 * standard + 0.01
            assert standard < 0.03


def test_the_documented_tables_are_those_of_the_code(exact: dict[float, Analysis]) -> None:
    numbers = re.compile(r"-?\d+\.\d+")

    def rows(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("|")]

    made = [line for level in (1.0, 0.5) for line in rows(exact[level].sheet().markdown())]
    text = DOCUMENT.read_text(encoding="utf-8").partition("## The toy, exact")[2]
    assert len(rows(text)) == len(made)
    for written, line in zip(rows(text), made, strict=True):
        values = [float(x) for x in numbers.findall(written)]
        # Another version of torch may round otherwise while it trains.
        assert values == pytest.approx([float(x) for x in numbers.findall(line)], abs=0.02)
        assert numbers.sub("", written).split() == numbers.sub("", line).split()
