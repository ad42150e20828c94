"""The toy: exact values against estimates, the inequalities, and the tables of the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.toy import BLOCK_SIZE, NUM_DIGITS, Toy, analyze_toy, build
from t3d.analysis.analyze import Analysis, Level
from t3d.report.sheets import render_markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "theory.md"


@pytest.fixture(scope="module")
def toy() -> Toy:
    return build()


@pytest.fixture(scope="module")
def exact(toy: Toy) -> Analysis:
    return analyze_toy(toy, exact=True)


def at(analysis: Analysis, noise_level: float | None) -> Level:
    return next(level for level in analysis.levels if level.noise_level == noise_level)


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


def test_proposition_4_3(exact: Analysis) -> None:
    """Trained on visited states, a student has no higher on-policy risk."""
    begun, half = (at(exact, level).differences[1].on_policy_risk for level in (1.0, 0.5))
    assert half.ci95[1] < 0
    # Fully masked blocks belong to both students' training: no difference but noise.
    assert abs(begun.mean) < 0.05


def test_theorem_4_5(exact: Analysis) -> None:
    """Of what remains, on the average, and of what is decided, before the last step."""
    for level, name in ((None, "total_correlation"), (0.25, "state_correlation")):
        teacher, *students = (getattr(row, name).mean for row in at(exact, level).measurements)
        assert max(students) < teacher - 0.05


def test_the_total_correlation_is_what_no_student_removes(exact: Analysis) -> None:
    for level in exact.levels:
        floor = level.measurements[0].total_correlation.values
        for row in level.measurements:
            for risk, least in zip(row.on_policy_risk.values, floor, strict=True):
                assert risk >= least - 1e-10


def test_estimates_agree_with_exact_values(toy: Toy, exact: Analysis) -> None:
    estimated = at(analyze_toy(toy, exact=False), 0.5)
    for found, truth in zip(estimated.measurements, at(exact, 0.5).measurements, strict=True):
        for name in ("on_policy_risk", "total_correlation"):
            values = torch.tensor(getattr(found, name).values)
            error = values - torch.tensor(getattr(truth, name).values)
            standard = float(error.std()) / len(error) ** 0.5
            assert abs(float(error.mean())) < 4 * standard + 0.01
            assert standard < 0.03


def test_the_documented_tables_are_those_of_the_code(exact: Analysis) -> None:
    numbers = re.compile(r"-?\d+\.\d+")

    def rows(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("|")]

    made = rows(render_markdown([exact.section()]))
    text = DOCUMENT.read_text(encoding="utf-8").partition("## The toy, exact")[2]
    assert len(rows(text)) == len(made)
    for written, line in zip(rows(text), made, strict=True):
        values = [float(x) for x in numbers.findall(written)]
        # Another version of torch may round otherwise while it trains.
        assert values == pytest.approx([float(x) for x in numbers.findall(line)], abs=0.02)
        assert numbers.sub("", written).split() == numbers.sub("", line).split()
