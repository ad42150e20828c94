"""Answers with words around their number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t3d.grading.math import grade_answers
from t3d.grading.quantities import one_number
from t3d.tasks.prompts import numbered_prompts

CASES = [
    # Words without digits or scale leave the number.
    (r"18 dollars", "18", True),
    (r"\text{18 dollars}", "18", True),
    (r"18~\text{apples}", "18", True),
    (r"5 eggs", "5", True),
    (r"5 years old", "5", True),
    (r"\text{5 hours}", "5", True),
    (r"12\ \mathrm{people}", "12", True),
    (r"1,200 \textbf{steps}.", "1200", True),
    (r"x = 7 days", "7", True),
    (r"\frac{3}{4} cups", r"\frac{3}{4}", True),
    (r"-3.5\text{ points}", "-3.5", True),
    (r"18 dollars", "19", False),
    (r"5 eggs", "50", False),
    (r"5 m", "5", True),
    (r"5 m^2", "5", True),
    (r"2.5 m/s", "2.5", True),
    (r"5 m", "50", False),
    (r"5m", "5", True),
    (r"5 x", "5", False),
    (r"5 m + 3", "5", False),
    (r"\frac{3}{4} cups", "3", False),
    (r"10 percent", "10", True),
    (r"the answer is 7", "8", False),
    # Units that no library lists.
    (r"25 km/h", "25", True),
    (r"10 cm^2", "10", True),
    (r"9.8 \text{ m/s}^2", "9.8", True),
    (r"i^2 + 6", "5", False),
    (r"40 kilowatt-hours (kWh)", "40", True),
    (r"10 cm^2", "102", False),
    # Currency signs and codes, degrees, bold type.
    (r"18 USD", "18", True),
    (r"EUR 18.50", "18.5", True),
    (r"£18", "18", True),
    (r"€1,800", "1800", True),
    (r"US\$18", "18", True),
    (r"5°", "5", True),
    (r"37 °C", "37", True),
    (r"45^\circ\text{F}", "45", True),
    (r"**18**", "18", True),
    (r"__18 dollars__", "18", True),
    (r"**18**", "324", False),
    (r"2**3", "23", False),
    # Scale words multiply.
    (r"5\text{ million}", "5", False),
    (r"5\text{ million}", "5000000", True),
    (r"5\text{ thousand}", "5", False),
    (r"1.5 billion people", "1500000000", True),
    (r"2 \text{ dozen}", "2", False),
    (r"2 \text{ dozen eggs}", "24", True),
    (r"3 hundred thousand", "300000", True),
    (r"\$5k", "5000", True),
    (r"\$5\text{k}", "5", False),
    (r"4 boxes of a dozen", "4", False),
    # Two numbers do not equal one.
    (r"5 \text{ apples and } 3 \text{ pears}", "5", False),
    (r"5 \text{ (not } 6)", "5", False),
    (r"\text{Ann } 3, \text{Bob } 5", "3", False),
    (r"5 \text{ and a half}", "5", False),
    (r"2 \text{ thirds}", "2", False),
    (r"\text{not } 5", "5", False),
    (r"5 \text{ pi}", "5", False),
    (r"2\mathbf{i}", "2", False),
    # What is one number without words is still read as mathematics.
    (r"10^{16}", "10000000000000000", True),
    (r"2+3", "5", True),
    (r"5x", "5", False),
    (r"1\,234", "1234", True),
]
SUITE = Path(__file__).parents[3] / "shared" / "cases" / "math.jsonl"


def test_words_around_a_number_are_read() -> None:
    outputs = [f"\\boxed{{{answer}}}" for answer, _, _ in CASES]
    verdicts = grade_answers(outputs, [gold for _, gold, _ in CASES], num_workers=1)
    wrong = [c for c, verdict in zip(CASES, verdicts, strict=True) if verdict.correct != c[2]]
    assert wrong == []


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"5\text{ m}", r"5\text{ km}"),
        (r"1 \text{ and } 2", "1,2"),
        (r"x+2 \text{ apples}", "x+2"),
        (r"\text{Tuesday}", "5"),
        (r"3 \text{ or } 5", "(3,5)"),
    ],
)
def test_the_rule_leaves_alone_what_is_not_one_number(answer: str, gold: str) -> None:
    assert one_number(answer, gold) == answer


if SUITE.exists():

    def test_the_shared_suite(tmp_path: Path) -> None:
        rows = [json.loads(line) for line in SUITE.read_text().splitlines()]
        golds = tmp_path / "golds.jsonl"
        lines = [{"question": "?", "answer": row.get("gold", row.get("gold_json"))} for row in rows]
        golds.write_text("\n".join(map(json.dumps, lines)))
        verdicts = grade_answers(
            [row["answer"] for row in rows],
            [e.answer for e in numbered_prompts(golds).values()],
            num_workers=1,
        )
        assert [v.correct for v in verdicts] == [row["expect"] for row in rows]
