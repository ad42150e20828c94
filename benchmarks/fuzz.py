"""Every command with wrong options and damaged input: no traceback, no hang, nothing half written.

`python -m benchmarks.fuzz --minutes 5`; each failure comes with the command that tries it again.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from rich.console import Console
from rich.table import Table

from t3d.cli.commands import COMMANDS
from tests.cli.fuzzing import ONCE, Case, attempt, cases, make_small, without_numbers
from tests.cli.inputs import build

SECONDS, MUCH = 15.0, 2.0
"""A call may take, and before one that asks for much work is told to stop."""
GRACE = 10.0
"""Seconds that a call may take to stop when it is told to."""
MEMORY = 12 << 30
PROCESSES = 40
"""One case of so many is a process of its own."""
ROUND = settings(ONCE, max_examples=12)
"""Cases of a command before the next one's turn."""


def by_process(arguments: list[str]) -> tuple[int, str, str]:
    """`python -m t3d`, as a user calls it."""
    words = [word.encode("utf-8", "surrogateescape") for word in arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "t3d", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        out, err = process.communicate()
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def isolated(case: Case, root: Path, folder: Path, *, process: bool = False) -> list[str]:
    """`attempt` in a child, which may crash, hang or ask for all memory."""
    seconds = MUCH if case.asks_for_much and not process else SECONDS
    told = folder.with_suffix(".json")
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            gc.callbacks.clear()  # Where a call would not be stopped.
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            how = {"call": by_process} if process else {}
            problems = attempt(case, root, folder, seconds=seconds, **how)
        except BaseException:
            problems = [f"the fuzz itself: {traceback.format_exc()}", ""]
        told.write_text(json.dumps(problems))
        os._exit(0)
    started = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > started + seconds + GRACE:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return ["hangs", ""]
        time.sleep(0.002)
    if not told.exists():
        return ["crashes", ""]
    problems = json.loads(told.read_text())
    told.unlink()
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", help="only this one; may be repeated")
    parser.add_argument("--case", help="try one case again")
    parser.add_argument("--words", type=Path, help="file for the last words of all cases")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    make_small(pytest.MonkeyPatch())
    gc.freeze()  # Children need not look through what they share.
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        root = Path(name) / "inputs"
        root.mkdir()
        # This process only forks: threads of libraries would not live in its children.
        if (child := os.fork()) == 0:
            build(root)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the inputs could not be made")
        if asked.case:
            found = isolated(Case.from_json(asked.case), root, Path(name) / "case")
            print("\n".join(found))
            return int(len(found) > 1)
        return fuzz(asked, root, Path(name))


def fuzz(asked: argparse.Namespace, root: Path, folder: Path) -> int:
    commands = asked.command or list(COMMANDS)
    strategies = {command: cases(command, root) for command in commands}
    tried, failed = Counter[str](), Counter[str]()
    spent: defaultdict[str, float] = defaultdict(float)
    kinds: defaultdict[str, list[tuple[Case, list[str]]]] = defaultdict(list)
    words: defaultdict[str, list[Case]] = defaultdict(list)
    end = time.monotonic() + 60 * asked.minutes

    def try_one(case: Case) -> None:
        if time.monotonic() > end:
            return
        started = time.monotonic()
        tried[case.command] += 1
        process = tried.total() % PROCESSES == 0
        *problems, last = isolated(case, root, folder / f"case{tried.total()}", process=process)
        words[f"{case.command}: {without_numbers(last)}"].append(case)
        spent[case.command] += time.monotonic() - started
        if problems:
            failed[case.command] += 1
            kinds[f"{case.command}: {without_numbers(problems[0])}"].append((case, problems))

    for turn in count():
        for number, command in enumerate(commands):
            drawn = given(strategies[command])(try_one)
            seed(f"{asked.seed} {turn} {number}")(ROUND(drawn))()
        if time.monotonic() > end:
            break
    if asked.words:
        lines = [
            f"{len(found)}  {text}\n    {found[0].to_json()}\n"
            for text, found in sorted(words.items())
        ]
        asked.words.write_text("".join(lines), errors="backslashreplace")
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        case, problems = found[0]
        shown = "\n  ".join(problems)
        print(f"{len(found)} x {kind}\n  {shown}".encode("ascii", "backslashreplace").decode())
        print(f"  python -m benchmarks.fuzz --case {shlex.quote(case.to_json())}\n")
    table = Table(
        "command", "cases", "failed", "seconds", title=f"fuzz: {len(kinds)} kinds of failures"
    )
    for command in commands:
        table.add_row(command, str(tried[command]), str(failed[command]), f"{spent[command]:.0f}")
    table.add_row("all", str(tried.total()), str(failed.total()), f"{sum(spent.values()):.0f}")
    Console(width=100).print(table)
    return int(bool(kinds))


if __name__ == "__main__":
    sys.exit(main())
