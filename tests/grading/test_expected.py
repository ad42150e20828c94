"""Tests cut into the part of the program and the part of the judge."""

from __future__ import annotations

import pytest

from t3d.grading.expected import split_tests

ASSERTIONS = (
    "assert f(2) == 4",
    "assert 4 == f(2)",
    "assert not f(2) == 4",
    "assert f(2) != 4, 'message'",
    "assert 3 < f(2) <= 4",
    "assert abs(f(0.5) - 0.25) < 1e-6",
    "assert -(f(2) * 2) == -8",
    "assert [f(1), (f(2),)] == [1, (4,)]",
    "assert f(2) in (3, 4)",
    "assert f(2) is not None",
    "assert f(2) is None",
    "assert (f(2) > 3) == True",
    "assert bool(f(0))",
    "assert not bool(f(0))",
    "assert f(2) == f(-2)",
    "assert f(2) == 4 and f(3) == 9",
    "assert {f(2): 'x'} == dict([(4, 'x')])",
    "assert set([f(2)]) == set([4])",
    "assert f(f)",
    "assert f(2) == f(f)",
    "assert f(f) == f(f)",
    "assert not f(f) == f(f)",
    "assert (f(2) == 4, 'message') and f(2)",
    "if f(2) != 4:\n    raise AssertionError",
    "y = 4\nassert f(2) == y",
    "def check(g):\n  for x in range(3):\n    assert g(x) == x * x\n  assert g(2) == 4\ncheck(f)",
    "try:\n    assert f(2) == 5\nexcept AssertionError:\n    pass\nelse:\n    assert f(2) == 3",
)
FUNCTIONS = {
    "square": lambda x: x * x,
    "double": lambda x: x + x,
    "none": lambda x: None,
    "object": lambda x: object,
    "nan": lambda x: float("nan"),
}


@pytest.mark.parametrize("test", ASSERTIONS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_two_parts_of_a_test_say_what_the_whole_says(test: str, function: str) -> None:
    split = split_tests([test], "ask")

    def ask(check: int, *values: object, plain: bool = False) -> bool:
        try:
            return bool(
                eval(split.checks[check].template, {f"_{i}": v for i, v in enumerate(values)})
            )
        except TypeError:
            return False

    def passes(source: str) -> bool:
        try:
            exec(source, {"f": FUNCTIONS[function], "ask": ask})
        except (AssertionError, TypeError):
            return False
        return True

    assert passes(split.snippets[0]) == passes(test)


@pytest.mark.parametrize(
    ("test", "required"),
    [
        ("assert f(1) == 77", [True]),
        ("assert f(1) == g(1)", [True]),
        ("assert f(1) > 0 and f(1) < g(2)", [True]),
        ("for x in (1, 2):\n    assert f(x) and g(x)", [False]),
        ("def test_f():\n    assert f(1) == 77", [True]),
        ("class T(TestCase):\n    def test_f(self):\n        self.assertEqual(f(1), 77)", [True]),
        ("class T(TestCase):\n    def help(self):\n        self.assertEqual(f(1), 77)", [False]),
        ("if f(1) != 2:\n    raise ValueError", [True]),
        ("assert f(1) == 77, g(1)\nassert True\nassert 1 == 1", [True]),
        ("def check(f):\n    assert f(1) == 77\ncheck(f)", [True]),
        ("def check(f):\n    assert f(1) == 77", [False]),
        ("def check(f):\n    return\n    assert f(1) == 77\ncheck(f)", [False]),
        (
            "def check(f):\n    if f:\n        assert f(1) == 77\n    assert not f(2)\ncheck(f)",
            [False, True],
        ),
        ("for x in []:\n    assert f(x) == 77", [False]),
        ("if f(1) == 2:\n    assert f(1) == 77", [False]),
        ("assert any(f(1))", [True]),
    ],
)
def test_only_what_every_run_reaches_is_required(test: str, required: list[bool]) -> None:
    split = split_tests([test], "ask")
    assert [check.required for check in split.checks] == required
    assert "77" not in split.snippets[0]


def test_the_polarity_of_a_bare_assertion_is_not_in_the_snippet() -> None:
    positive, negative = (
        split_tests(["assert f(1)"], "ask"),
        split_tests(["assert not f(1)"], "ask"),
    )
    assert positive.snippets == negative.snippets
    assert positive.checks != negative.checks


@pytest.mark.parametrize(
    "test",
    [
        "",
        "# f(2) is 4",
        "f(2) == 4",
        "f(2)",
        "y = f(2)",
        "print(f(2) == 4)",
        "assert True",
        "assert 1 + 1 == 2",
        "assert (f(2) == 4, 'message')",
        "assert (f(x) == x for x in (1, 2))",
        "assert lambda: f(2) == 4",
        "assert f'{f(2)}'",
        "if __name__ == '__main__':\n    assert f(2) == 4",
        "import unittest\nunittest.main()",
    ],
)
def test_what_no_program_can_fail_is_no_check(test: str) -> None:
    assert split_tests([test], "ask").checks == ()


@pytest.mark.parametrize("depth", [10, 300, 1000, 3000, 100000])
@pytest.mark.parametrize("kind", ["-", "()", "[]"])
def test_deep_tests_raise_nothing(kind: str, depth: int) -> None:
    deep = f"assert f(1) == {kind[0] * depth}1{kind[1:] * depth}"
    split = split_tests(["assert f(1) == 77", deep], "ask")
    assert "77" not in split.snippets[0]
    assert len(split.checks) == 2 or split.snippets[1] == deep
