"""A pass needs a check that ran and could have failed; what runs gets one verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t3d.grading.code import Program, grade_programs
from t3d.grading.sandbox import Backend
from tests.grading.sandboxes import reasons

RIGHT = "def add(a, b): return a + b"
WRONG = "def add(a, b): return a - b"
CASES = Path(__file__).parents[3] / "shared" / "cases" / "code.jsonl"

UNCHECKED = {
    "comment": "# add(1, 2) is 3",
    "comparison": "add(1, 2) == 3",
    "printed": "print(add(1, 2) == 3)",
    "tuple": "assert (add(1, 2) == 3, 'message')",
    "uncalled_check": "def check(f):\n    assert f(1, 2) == 3\n",
    "uncalled_coroutine": "async def test_add():\n    assert add(1, 2) == 3\n",
    "uncalled_with_a_fixture": "def test_add(x):\n    assert add(1, 2) == 3\n",
    "class_of_no_unittest": "class Tests:\n    def test(self):\n        assert add(1, 2) == 3\n",
    "an_assertion_of_true": "if add(1, 2): assert True\ntry: add(1, 2)\nfinally: assert 1\n",
    "no_round": "for a in []:\n    assert add(a, 2) == 3\n",
    "no_round_of_a_guard": "for a in []:\n    if add(a, 2) != 3: raise ValueError\n",
    "an_empty_case": "import unittest\nclass T(unittest.TestCase):\n    pass\n",
    "doctest": 'def g():\n    """\n    >>> add(1, 2)\n    3\n    """\nimport doctest\n'
    "doctest.testmod()",
}
CHECKED = {
    "function": "def test_add():\n    assert add(1, 2) == 3\n",
    "function_with_defaults": "def test_add(a=1, *, b=2):\n    assert add(a, b) == 3\n",
    "function_that_calls": "def test_add():\n    check(add)\n"
    "def check(f):\n    assert f(1, 2) == 3\n",
    "function_of_a_main_program": "def test_add():\n    assert add(1, 2) == 3\n"
    "if __name__ == '__main__':\n    test_add()\n",
    "case": "import unittest\nclass T(unittest.TestCase):\n"
    "    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n"
    "if __name__ == '__main__':\n    unittest.main()\n",
    "case_with_setup": "from unittest import TestCase, main\nclass T(TestCase):\n"
    "    @classmethod\n    def setUpClass(cls): cls.a = 1\n    def setUp(self): self.b = 2\n"
    "    def test_add(self):\n        self.assertTrue(add(self.a, self.b) == 3)\n",
    "case_of_many_kinds": "import unittest\nclass T(unittest.TestCase):\n"
    "    def test_add(self):\n        self.assertAlmostEqual(add(1, 0.5), 1.5)\n"
    "        with self.assertRaises(TypeError):\n            add('1', 2)\n",
    "guard": "if add(1, 2) != 3:\n    raise ValueError('wrong')\n",
    "an_error_that_must_come": "try:\n    add(1, 2) == 3 and add('1', 2)\n"
    "except TypeError:\n    pass\nelse:\n    raise AssertionError\n",
    "an_assertion_of_false": "try:\n    add('1', 2)\n    assert False, 'no error'\n"
    "except TypeError:\n    assert True\nif add(1, 2) != 3: assert False\n",
    "case_that_fails_by_name": "import unittest\nclass T(unittest.TestCase):\n"
    "    def test_add(self):\n        if add(1, 2) != 3: self.fail('wrong')\n",
    "check_in_the_setup": "check(add)",
}
SETUP = "def check(f):\n    assert f(1, 2) == 3\n"


def test_tests_that_check_nothing_let_nothing_pass(backend: Backend) -> None:
    rows = [Program(p, (test,)) for test in UNCHECKED.values() for p in (RIGHT, WRONG, "")]
    verdicts = iter(grade_programs(rows))
    got = {name: [next(verdicts).reason for _ in range(3)] for name in UNCHECKED}
    assert not {name for name, found in got.items() if "passed" in found}
    assert all(right == "no_verdict" for right, _, _ in got.values())


def test_tests_that_nobody_calls_are_run(backend: Backend) -> None:
    rows = [Program(p, (t,), SETUP) for t in CHECKED.values() for p in (RIGHT, WRONG, "")]
    verdicts = iter(grade_programs(rows))
    got = {name: [next(verdicts).passed for _ in range(3)] for name in CHECKED}
    assert got == {name: [True, False, False] for name in CHECKED}


PATCHED = """
import unittest
unittest.TestCase.debug = unittest.TestSuite.debug = lambda *a: None
unittest.TestLoader.loadTestsFromTestCase = lambda *a: unittest.TestSuite()
unittest.TestCase.assertEqual = lambda *a: None
def test_add(): pass
def add(a, b): return a - b
"""


@pytest.mark.parametrize("name", ["function", "case", "case_with_setup"])
def test_a_program_cannot_keep_its_tests_from_running(backend: Backend, name: str) -> None:
    assert reasons([PATCHED], (CHECKED[name],))[0] in ("no_verdict", "assertion")


LIMITS = """
import os, resource
os.sched_setaffinity(0, os.sched_getaffinity(0))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def add(a, b): return a + b
"""


def test_a_program_may_set_its_own_limits(backend: Backend) -> None:
    assert reasons([LIMITS], ("assert add(1, 2) == 3",)) == ["passed"]


CHANCES = {
    "texts": "assert f(0, ['B', 'A', 'C', 'D']) == 'b a c d'",
    "none": "assert f(1, ['B', None, 'A', 7]) == 'b None a 7'",
    "addresses": "assert f(2, [f, len, Exception, int, sum])[0] == 'len'",
}
UNORDERED = """
def f(kind, values):
    if kind == 0: return ' '.join({v.lower() for v in values})
    if kind == 1: return ' '.join(map(str, set(values)))
    return [v.__name__ for v in set(values)]
"""


@pytest.mark.parametrize("test", CHANCES.values(), ids=CHANCES)
def test_the_order_of_a_set_is_no_chance(backend: Backend, test: str) -> None:
    assert len(set(reasons([UNORDERED] * 12, (test,)))) == 1


PARALLEL = {
    "lock": "import multiprocessing\nlock = multiprocessing.Lock()\n"
    "def f(xs):\n    with lock:\n        return list(map(abs, xs))",
    "pool": "import multiprocessing\ndef f(xs):\n    with multiprocessing.Pool(2) as p:\n"
    "        return p.map(abs, xs)",
    "pool_left_open": "import multiprocessing\np = multiprocessing.Pool(2)\n"
    "def f(xs): return p.map(abs, xs)",
    "executor": "from concurrent.futures import ProcessPoolExecutor\ndef f(xs):\n"
    "    with ProcessPoolExecutor(2) as p:\n        return list(p.map(abs, xs))",
    "executor_left_open": "from concurrent.futures import ProcessPoolExecutor\n"
    "p = ProcessPoolExecutor(2)\ndef f(xs): return list(p.map(abs, xs))",
    "threads_left_open": "from concurrent.futures import ThreadPoolExecutor\n"
    "p = ThreadPoolExecutor(2)\ndef f(xs): return list(p.map(abs, xs))",
    "process_never_waited_for": "import os, time\nif os.fork() == 0: os._exit(0)\ntime.sleep(0.2)\n"
    "def f(xs): return list(map(abs, xs))",
    "shared_memory": "from multiprocessing.shared_memory import ShareableList\ndef f(xs):\n"
    "    l = ShareableList([abs(x) for x in xs])\n    try: return list(l)\n"
    "    finally: l.shm.close(); l.shm.unlink()",
}


def test_programs_of_several_processes_pass(backend: Backend) -> None:
    found = reasons([*PARALLEL.values()], ("assert f([-1, 2]) == [1, 2]",))
    got = dict(zip(PARALLEL, found, strict=True))
    assert got == dict.fromkeys(PARALLEL, "passed")


LARGE = (
    "assert f(600000) == list(range(600000))",
    "assert len(f(0)) == 6000000 and f(0) == 'x' * 6000000",
    "assert f(0) == 'x' * 6000000",
    "assert f(-1) == 7 ** 2000000",
)
LARGE_VALUES = (
    "def f(n): return 'x' * 6000000 if n == 0 else 7 ** 2000000 if n < 0 else list(range(n))"
)


def test_large_values_cross(backend: Backend) -> None:
    assert reasons([LARGE_VALUES], LARGE) == ["passed"]


def test_deep_rows_have_a_verdict(backend: Backend) -> None:
    rows = [Program(RIGHT, (f"assert add(1, 2) == {'-' * depth}3",)) for depth in (10, 1000)]
    rows += [Program(f"x = {'-' * 3000}1\n{RIGHT}", ("assert add(1, 2) == 3",))]
    rows += [Program(RIGHT, (f"assert add(1, 2) == {mark * 3000}3",)) for mark in "-[("]
    passed = [verdict.passed for verdict in grade_programs(rows)]
    # How deep Python reads is its version's.
    assert (passed[:2], passed[4:]) == ([True, True], [False, False])


@pytest.mark.parametrize("path", [path for path in [CASES] if path.exists()])
def test_the_shared_cases(backend: Backend, path: Path) -> None:
    for row in map(json.loads, path.read_text().splitlines()):
        num = 20 if "20" in row["expect"] else 1
        rows = [Program(row["program"], tuple(row["tests"]))] * num
        got = {verdict.passed for verdict in grade_programs(rows)}
        assert len(got) == 1, row
        assert row["expect"].startswith("one verdict") or got == {row["expect"] == "passed"}, row
