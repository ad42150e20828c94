"""Reference programs of HumanEval and MBPP through the sandbox, counted and timed.

    python -m benchmarks.sandbox FOLDER

`FOLDER` holds `humaneval.jsonl` and `mbpp_test.jsonl`: rows of `id`, `prompt_prefix`, `reference`,
`tests`, `test_setup`, `meta`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from t3d.grading.code import Program, grade_programs

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def humaneval(row: Row) -> Program:
    """The beginning of the assistant's turn, its fence removed, and the canonical solution."""
    prefix = row["prompt_prefix"].split("```python\n", 1)[1].rstrip("\n")
    return Program(f"{prefix}\n{row['meta']['canonical_solution']}", tuple(row["tests"]))


def mbpp(row: Row) -> Program:
    """The reference program with upstream's tests."""
    return Program(row["reference"], tuple(row["tests"]), row["test_setup"] or "")


def mbpp_asserts(row: Row) -> Program:
    """The reference program with the three official assertions."""
    return Program(row["reference"], tuple(row["meta"]["asserts"]), row["test_setup"] or "")


SETS: tuple[tuple[str, str, Callable[[Row], Program]], ...] = (
    ("HumanEval", "humaneval.jsonl", humaneval),
    ("MBPP, official assertions", "mbpp_test.jsonl", mbpp_asserts),
    ("MBPP, upstream's tests", "mbpp_test.jsonl", mbpp),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-workers", type=int)
    options = parser.parse_args()
    table = Table("references", "passed", "of", "seconds", "not passed")
    for title, name, program in SETS:
        examples = rows(options.folder / name)
        start = time.perf_counter()
        verdicts = grade_programs(list(map(program, examples)), num_workers=options.num_workers)
        seconds = time.perf_counter() - start
        failed = [
            f"{row['id']} ({verdict.reason})"
            for row, verdict in zip(examples, verdicts, strict=True)
            if not verdict.passed
        ]
        num_passed = len(examples) - len(failed)
        columns = (str(num_passed), str(len(examples)), f"{seconds:.1f}", ", ".join(failed))
        table.add_row(title, *columns)
    Console().print(table)


if __name__ == "__main__":
    main()
