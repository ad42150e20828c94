"""Rows share nothing, none holds up the others, and all end with the grader."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t3d.grading.code import Program, grade_programs
from t3d.grading.sandbox import Backend
from tests.grading.hostile.corpus import HONEST, SAID, TESTS
from tests.grading.sandboxes import in_namespaces, reasons

PLACES = """
import glob, os, socket
NOTE = "t3d-note"
FILES = [f"{folder}/{NOTE}" for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev", ".")]
FILES += [os.path.join(os.path.dirname(os.__file__), NOTE), "/etc/" + NOTE, "/run/lock/" + NOTE]
"""
LEAVES = f"""{PLACES}
left = 0
for path in FILES:
    try:
        with open(path, "w") as file: left += file.write("9 16")
    except OSError: pass
for family, address in ((socket.AF_UNIX, "\\0" + NOTE), (socket.AF_UNIX, "/tmp/socket")):
    server = socket.socket(family)
    server.bind(address)
    server.listen()
assert left
{HONEST}"""
FINDS = f"""{PLACES}
found = [path for path in FILES if os.path.exists(path)] + glob.glob("/tmp/*")
try:
    socket.socket(socket.AF_UNIX).connect("\\0" + NOTE)
    found.append("socket")
except OSError: pass
def f(x): return 0 if found else x * x
"""


def test_no_row_leaves_a_note_for_another(backend: Backend) -> None:
    programs = [Program(source, TESTS) for source in (LEAVES, FINDS) * 3]
    for num_workers in (1, 3):
        verdicts = grade_programs(programs, num_workers=num_workers)
        assert [verdict.reason for verdict in verdicts] == ["passed"] * 6


def syscall(number: int, *arguments: bytes | int | None) -> int:
    whole = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return ctypes.CDLL(None).syscall(ctypes.c_long(number), *whole)


KEYS = """
from tests.grading.test_rows import syscall
from t3d.grading.runner import _join_new_keyring
syscall(KEYCTL, 1, None)
assert syscall(ADD_KEY, b"user", b"t3d-host", b"9", 1, -3) > 0
search = (KEYCTL, 10, -3, b"user", b"t3d-host", 0)
assert syscall(*search) > 0
_join_new_keyring()
assert syscall(*search) == -1
"""
NUMBERS = {"x86_64": (250, 248), "aarch64": (219, 217)}


@pytest.mark.parametrize(
    ("keyctl", "add_key"),
    [
        numbers
        for machine, numbers in NUMBERS.items()
        if machine == platform.machine() and syscall(numbers[0], 0, -3, 1) >= 0
    ],
)
def test_the_keys_of_the_caller_stay_behind(keyctl: int, add_key: int) -> None:
    source = KEYS.replace("KEYCTL", str(keyctl)).replace("ADD_KEY", str(add_key))
    subprocess.run([sys.executable, "-c", source], check=True)


STALLS = ("a_long_integer", "a_long_fraction", "colliding_integers")


def test_a_judge_is_not_held_up(backend: Backend) -> None:
    start = time.monotonic()
    stalls = [SAID[f"said_{name}"][1] for name in STALLS]
    got = reasons([*stalls, HONEST], time_limit_s=0.05, num_workers=1)
    assert got[-1] == "passed"
    assert "passed" not in got[:-1]
    assert time.monotonic() - start < 90  # Two minutes for one of them without limits.


@pytest.mark.parametrize(
    "source", [SAID["said_colliding_integers"][1], "import time\ntime.sleep(99)"]
)
def test_everything_ends_with_the_grader(backend: Backend, source: str, tmp_path: Path) -> None:
    path = tmp_path / "programs.jsonl"
    row = {"program": source, "tests": list(TESTS), "time_limit_s": 60}
    path.write_text(json.dumps(row) + "\n")
    before = in_namespaces()
    call = f"from t3d.grading import code; code.find_backend = lambda: {backend!r}; code.main()"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    grader = subprocess.Popen([sys.executable, "-c", call, str(path)], env=environment)
    while not (started := in_namespaces() - before):
        time.sleep(0.05)
    time.sleep(0.5)
    started |= in_namespaces() - before
    grader.kill()
    grader.wait()
    deadline = time.monotonic() + 30  # Sandboxes of other tests end; a survivor stays.
    while started & in_namespaces() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not started & in_namespaces()
    assert not list(temporary.iterdir())
