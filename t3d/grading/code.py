"""Grade Python programs by their tests, each in a sandbox of its own: see docs/sandbox.md.

    python -m t3d.grading.code FILE.jsonl

grades rows of `program`, `tests`, and optionally `test_setup` and `time_limit_s`, and prints one
JSON verdict a line, in order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from t3d.grading.sandbox import SandboxError, find_backend, run


@dataclass(frozen=True)
class Program:
    """A program and the tests that it must pass."""

    program: str
    """Source of the program, in Python with nothing but the standard library."""
    tests: tuple[str, ...] = ()
    """Snippets that run in the program's namespace, one after another; none may raise, and one
    must check something. Functions `test_*` that nothing calls and classes of unittest are run."""
    test_setup: str = ""
    """Source that runs between the program and its tests."""
    time_limit_s: float = 1.0
    """Seconds for the program and its tests on a fast, idle machine. `sandbox.py` grants ten
    times as many processor seconds, and three seconds of sleep to one."""
    cases: tuple[tuple[str, str], ...] = ()
    """Instead of tests, for a main program: what it reads from stdin and what it must write to
    stdout, compared word by word, as T3D's authors do. Each runs by itself with the whole limit."""

    def __post_init__(self) -> None:
        if not self.tests and not self.cases:
            raise ValueError("tests is empty; a program without tests has no verdict")
        if self.tests and self.cases:
            raise ValueError("a program has tests of functions or cases of stdin, not both")
        if not 0 < self.time_limit_s <= 3600:
            raise ValueError(f"time_limit_s is {self.time_limit_s}; it must be in (0, 3600]")

    @property
    def parts(self) -> list[Program]:
        """The same program with each of its tests, or cases, alone."""
        tests = (replace(self, tests=(test,)) for test in self.tests)
        return [*tests, *(replace(self, cases=(case,)) for case in self.cases)]


@dataclass(frozen=True)
class CodeVerdict:
    """The verdict on one program."""

    passed: bool
    reason: str
    """Outcome in a word: "passed"; "assertion" or "error: NAME" of what was raised; "syntax", of
        the program; "timeout", "memory" or "processes", the limit exceeded; "killed: SIGNAL";
        "no_verdict" where the program ended, or spoke, otherwise than by running its tests to their
        end, or the tests checked nothing."""


def grade_programs(
    programs: Sequence[Program], *, num_workers: int | None = None, unsafe_exec: bool = False
) -> list[CodeVerdict]:
    """Verdicts in order.

    Args:
        num_workers: programs that run at the same time; None for one a processor.
        unsafe_exec: run them without a sandbox, as the user; only resource limits remain.

    Raises:
        ValueError: if this machine has no sandbox, unless `unsafe_exec`.
        SandboxError: if the sandbox fails later on; there is no verdict then.
    """
    if not programs:
        return []
    backend = "none" if unsafe_exec else find_backend()

    def grade(item: Program) -> CodeVerdict:
        runs: list[tuple[str | None, Sequence[str]]] = [
            (stdin, [f"assert stdout.split() == {stdout.split()!r}"])
            for stdin, stdout in item.cases
        ]
        reasons = (
            run(item.program, tests, item.test_setup, item.time_limit_s, backend, stdin)
            for stdin, tests in runs or [(None, item.tests)]
        )
        reason = next((reason for reason in reasons if reason != "passed"), "passed")
        return CodeVerdict(reason == "passed", reason)

    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        return list(pool.map(grade, programs))


def read_programs(path: Path) -> Iterator[Program]:
    """The rows of a JSONL file.

    Raises:
        ValueError: for a row that is no program; names file, line and key.
    """
    required = {"program", "tests"}
    known = {field.name for field in fields(Program)} - {"cases"}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a row must be an object with {', '.join(sorted(required))}")
        for key in sorted(required - row.keys()):
            raise ValueError(f"{where}: key {key!r} is missing; add it")
        arguments: dict[str, Any] = {key: row[key] for key in known if key in row}
        for key in ("program", "test_setup"):
            if not isinstance(arguments.get(key, ""), str):
                raise ValueError(f"{where}: {key!r} must be a string of Python source")
        tests = arguments["tests"]
        if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
            raise ValueError(f"{where}: 'tests' must be a list of strings of Python source")
        if not isinstance(arguments.get("time_limit_s", 1.0), int | float):
            raise ValueError(f"{where}: 'time_limit_s' must be a number of seconds")
        arguments["tests"] = tuple(tests)
        try:
            yield Program(**arguments)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m t3d.grading.code", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--num-workers", type=int, help="programs that run at the same time")
    parser.add_argument(
        "--unsafe-exec", action="store_true", help="run programs without a sandbox, as you"
    )
    options = parser.parse_args(arguments)
    if options.num_workers is not None and options.num_workers < 1:
        parser.error("--num-workers must be at least 1")
    try:
        programs = list(read_programs(options.file))
        verdicts = grade_programs(
            programs, num_workers=options.num_workers, unsafe_exec=options.unsafe_exec
        )
    except (OSError, ValueError, SandboxError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for verdict in verdicts:
        print(json.dumps(asdict(verdict)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
