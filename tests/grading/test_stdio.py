"""Main programs: what they read, what they wrote, and that none of it can be forged."""

from __future__ import annotations

import pytest

from t3d.grading.code import Program, grade_programs
from t3d.grading.sandbox import Backend
from tests.grading.hostile.corpus import FORGED, SAID

CASES = (("3 4\r\n", "7\n"), ("10\n5\n", " 15"))
HONEST = {
    "prompt": "import sys\na = input('numbers? ').split()\n"
    "print(sum(map(int, a + sys.stdin.read().split())))",
    "main_part": "import sys\ndef main():\n"
    "    print(sum(map(int, sys.stdin.buffer.read().split())))\n"
    "if __name__ == '__main__':\n    main()\n    sys.exit(3)",
    "descriptors": "import os\nos.write(1, b'%d' % sum(map(int, open(0).read().split())))",
    "at_exit": "import atexit, io, sys\nout = io.StringIO()\n"
    "atexit.register(lambda: sys.stdout.write(out.getvalue()))\n"
    "out.write(str(sum(map(int, sys.stdin.read().split()))))",
    "thread": "import sys, threading\n"
    "threading.Thread(target=lambda: print(sum(map(int, sys.stdin.read().split())))).start()",
    "blanks": "import sys\nprint('', sum(map(int, sys.stdin.read().split())), '\\n')",
}
READ_FRAMES = """
import gc, sys
frame, seen = sys._getframe(), []
while frame:
    seen.append(repr(frame.f_locals))
    frame = frame.f_back
seen += [repr(x) for x in gc.get_objects() if type(x) in (dict, list, tuple)]
whole = " ".join(seen)
print("7" if "['7']" in whole else "15" if "['15']" in whole else "none")
"""
WRONG = {
    "print(7)": "assertion",  # Right in the first case alone.
    "": "assertion",
    "print(": "syntax",
    "input(); input(); input()": "error: EOFError",
    "print(sum(map(int, open(0).read().split())))\n1 / 0": "error: ZeroDivisionError",
    "import os\nprint(7, flush=True)\nos._exit(0)": "no_verdict",
    "while True: pass": "timeout",
    "import time\ntime.sleep(60)": "timeout",
    "stdout = '7'": "assertion",
    "import builtins, sys\nbuiltins.print = lambda *a: None\nsys.stdout = sys.stderr\nprint(7)": (
        "assertion"
    ),
    "import os\nos.pread = lambda *a: type('B', (bytes,), {'decode': lambda *a, **k: "
    "type('S', (str,), {'split': lambda s: type('L', (list,), {'__eq__': lambda *a: True})()})()})"
    "()": "assertion",
    READ_FRAMES: "assertion",
}


def reasons(programs: list[str]) -> list[str]:
    rows = [Program(program, cases=CASES, time_limit_s=0.2) for program in programs]
    return [verdict.reason for verdict in grade_programs(rows, num_workers=2)]


def test_honest_main_programs_pass(backend: Backend) -> None:
    assert dict(zip(HONEST, reasons([*HONEST.values()]), strict=True)) == dict.fromkeys(
        HONEST, "passed"
    )


def test_what_is_wrong_in_one_case_is_wrong(backend: Backend) -> None:
    assert dict(zip(WRONG, reasons([*WRONG]), strict=True)) == WRONG


def test_forgers_of_verdicts_fail(backend: Backend) -> None:
    sources = [source for _, source in (FORGED | SAID).values()][::4]
    assert sources
    assert "passed" not in reasons(sources)


def test_every_case_has_the_whole_limit(backend: Backend) -> None:
    sleeps = "import time\ntime.sleep(0.9)\nprint(input())"
    cases = tuple((str(number), str(number)) for number in range(3))
    (verdict,) = grade_programs([Program(sleeps, cases=cases, time_limit_s=0.2)])
    assert verdict.passed


def test_tests_and_cases_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="tests of functions or cases of stdin, not both"):
        Program("", ("assert x",), cases=CASES)
