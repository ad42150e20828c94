"""How the answers to a user's own questions are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t3d.tasks import get_task

WRONG = (
    ("[1, 2, 3]", "[3, 1, 2]"),
    ("a, b, c", "c, b, a"),
    ("2026-03-04", "2026-04-03"),
    ("4 March 2026", "3 April 2026"),
    ("desserts", "stressed"),
    ("no", "on"),
    ("12:30", "30:12"),
    ("x", "X"),
    ("7", "8"),
    ("yes", "yes yes"),
)
RIGHT = (
    ("[1, 2, 3]", "[1, 2, 3]"),
    ("2026-03-04", " 2026-03-04 "),
    ("yes", "\\text{yes}"),
    ("New York", "\\text{New  York}"),
    ("1000", "1,000"),
    ("0.5", "\\frac{1}{2}"),
    ("1/2", "0.5"),
    ("50%", "50\\%"),
    ("-3", "-3"),
)


def test_what_is_no_number_is_compared_exactly(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    cases = [*((gold, box, False) for gold, box in WRONG), *((g, b, True) for g, b in RIGHT)]
    path.write_text("\n".join(json.dumps({"question": "?", "answer": g}) for g, _, _ in cases))
    task = get_task(str(path))
    examples = task.examples("test", len(cases))
    grades = task.grade(examples, [f"So \\boxed{{{box}}}." for _, box, _ in cases])
    assert [grade.correct for grade in grades] == [right for _, _, right in cases]
    assert not any(grade.correct for grade in task.grade(examples, ["nothing"] * len(cases)))


@pytest.mark.parametrize(
    ("grader", "correct"),
    [("math", [True, True]), ("exact", [False, False]), (None, [False, True])],
)
def test_a_line_names_its_grader(grader: str | None, correct: list[bool], tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question": "?", "answer": a, "grader": grader} for a in ("x + 1", "0.5")]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = get_task(str(path))
    grades = task.grade(task.examples("test", 2), ["\\boxed{1 + x}", "\\boxed{1/2}"])
    assert [grade.correct for grade in grades] == correct
    path.write_text('{"question": "?", "answer": "x", "grader": "fuzzy"}')
    with pytest.raises(ValueError, match="line 1: 'grader' must be exact or math, got 'fuzzy'"):
        get_task(str(path))
