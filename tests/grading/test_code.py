"""Honest programs pass, and the command prints a verdict a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sandbox import Row, humaneval, mbpp, mbpp_asserts, rows
from t3d.grading.code import CodeVerdict, Program, grade_programs, main
from t3d.grading.sandbox import Backend
from tests.grading.hostile.corpus import HONEST, TESTS
from tests.grading.sandboxes import reasons

DATA = Path(__file__).parents[3] / "shared" / "data"


HONEST_FORMS = {
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    "f = lambda x: P(x).x ** 2",
    "output": "print('{\"token\": 1}' * 100000)\n" + HONEST,
    "main_part": "if __name__ == '__main__':\n    1 / 0\n" + HONEST,
    "finished_thread": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\n"
    + HONEST,
    "daemon_thread": "import threading\n"
    "threading.Thread(target=threading.Event().wait, daemon=True).start()\n" + HONEST,
    "a_file_of_its_own": "open('/tmp/x', 'w').write('3')\nassert open('x').read() == '3'\n"
    + HONEST,
    "short_sleep": "import time\ntime.sleep(0.5)\n" + HONEST,
    "float": "def f(x): return float(x * x)",
    "fraction": "from fractions import Fraction\ndef f(x): return Fraction(x) ** 2",
    "decimal": "from decimal import Decimal\ndef f(x): return Decimal(x) ** 2",
    "enum": "from enum import IntEnum\nclass E(IntEnum):\n    A = 9\n    B = 16\n"
    "def f(x): return E(x * x)",
}


def test_honest_programs_pass(backend: Backend) -> None:
    got = dict(zip(HONEST_FORMS, reasons(list(HONEST_FORMS.values())), strict=True))
    assert got == dict.fromkeys(HONEST_FORMS, "passed")


def test_setup_and_snippets_share_the_namespace_of_the_program(backend: Backend) -> None:
    program = Program(HONEST, ("y = f(n)", "assert y == 25", "assert g(2) == 4"), "n = 5\ng = f")
    assert grade_programs([program]) == [CodeVerdict(True, "passed")]
    assert reasons([HONEST], ("assert f(2) ==",)) == ["error: SyntaxError"]
    assert reasons([HONEST], ("assert f(10 ** 9000) == 10 ** 18000",)) == ["passed"]


def test_order_is_kept_and_nothing_is_no_work(backend: Backend) -> None:
    assert grade_programs([]) == []
    sources = [HONEST if i % 3 else "def f(x): return 0" for i in range(9)]
    assert reasons(sources) == ["passed" if i % 3 else "assertion" for i in range(9)]


def samples() -> list[tuple[str, list[Row]]]:
    """Every sixth problem of HumanEval, every fourteenth of MBPP; none without the data."""
    files = [DATA / "humaneval.jsonl", DATA / "mbpp_test.jsonl"]
    return [
        (path.stem, rows(path)[1::step])
        for path, step in zip(files, (6, 14), strict=True)
        if path.exists()
    ]


@pytest.mark.parametrize(("name", "sample"), samples())
def test_reference_programs_pass(backend: Backend, name: str, sample: list[Row]) -> None:
    program = humaneval if name == "humaneval" else mbpp_asserts
    verdicts = grade_programs(list(map(program, sample)))
    assert {
        row["id"] for row, verdict in zip(sample, verdicts, strict=True) if not verdict.passed
    } == set()


@pytest.mark.parametrize("path", [path for path in [DATA / "mbpp_test.jsonl"] if path.exists()])
def test_two_problems_of_upstreams_mbpp_have_no_solution(backend: Backend, path: Path) -> None:
    chosen = [row for row in rows(path) if row["id"] in ("mbpp/56", "mbpp/349", "mbpp/367")]
    got = {
        row["id"]: v.passed
        for row, v in zip(chosen, grade_programs(list(map(mbpp, chosen))), strict=True)
    }
    assert got == {"mbpp/56": False, "mbpp/349": False, "mbpp/367": True}


@pytest.mark.parametrize(
    "fields", [{"tests": ()}, {"time_limit_s": 0.0}, {"time_limit_s": float("nan")}]
)
def test_a_program_that_can_have_no_verdict_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Program(**dict[str, Any](program="", tests=TESTS) | fields)


# The command.


def test_the_command_prints_a_verdict_a_line(tmp_path: Path, backend: Backend) -> None:
    lines = [
        {"program": HONEST, "tests": list(TESTS), "test_setup": ""},
        {"program": "import os\nos._exit(0)", "tests": list(TESTS), "id": "ignored"},
        {"program": "x = n", "tests": ["assert x == 1"], "test_setup": "", "time_limit_s": 1},
    ]
    path = tmp_path / "programs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-W", "error", "-m", "t3d.grading.code", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"passed": True, "reason": "passed"},
        {"passed": False, "reason": "no_verdict"},
        {"passed": False, "reason": "error: NameError"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON"),
        ("[" * 100000, "2: not JSON"),
        ("[]", "2: a row must be an object"),
        ('{"program": ""}', "2: key 'tests' is missing"),
        ('{"tests": []}', "2: key 'program' is missing"),
        ('{"program": 1, "tests": ["x"]}', "2: 'program' must be a string"),
        ('{"program": "", "tests": "x"}', "2: 'tests' must be a list"),
        ('{"program": "", "tests": []}', "2: tests is empty"),
        ('{"program": "", "tests": ["x"], "test_setup": null}', "2: 'test_setup' must be"),
        ('{"program": "", "tests": ["x"], "time_limit_s": "1"}', "2: 'time_limit_s' must be"),
        ('{"program": "", "tests": ["x"], "time_limit_s": -1}', "2: time_limit_s is -1"),
    ],
)
def test_bad_rows_name_file_line_and_key(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text(json.dumps({"program": "", "tests": ["x"]}) + "\n" + line + "\n")
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert f"{path}:{message}" in captured.err
    assert captured.out == ""


def test_an_absent_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.jsonl")]) == 2
    assert "absent.jsonl" in capsys.readouterr().err
