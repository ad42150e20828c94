"""The backends of this machine, and what is left of the processes of sandboxes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from t3d.grading.code import Program, grade_programs
from t3d.grading.sandbox import Backend, SandboxError, run
from tests.grading.hostile.corpus import TESTS


def found() -> list[Backend]:
    backends: list[Backend] = []
    for backend in ("bubblewrap", "namespaces") if sys.platform == "linux" else ():
        try:
            run("", ["pass"], "", 1.0, backend)
            backends.append(backend)
        except SandboxError:
            continue
    return backends


BACKENDS = found()


def in_namespaces() -> set[int]:
    """Processes that have a pid of their own in a namespace below this one."""
    own = len(pids_of("self"))
    return {int(p.name) for p in Path("/proc").glob("[0-9]*") if len(pids_of(p.name)) > own}


def pids_of(process: str) -> list[str]:
    try:
        return re.findall(r"^NSpid:(.*)$", Path("/proc", process, "status").read_text(), re.M)[
            0
        ].split()
    except (OSError, IndexError):
        return []


def reasons(
    programs: list[str],
    tests: tuple[str, ...] = TESTS,
    num_workers: int | None = None,
    **fields: Any,
) -> list[str]:
    rows = [Program(program, tests, **fields) for program in programs]
    return [verdict.reason for verdict in grade_programs(rows, num_workers=num_workers)]
