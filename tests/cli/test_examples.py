"""The examples in the docstrings of `t3d.__all__` give what they show."""

from __future__ import annotations

import doctest
import sys
from types import FunctionType

import pytest

import t3d

FACE = {name: getattr(t3d, name) for name in t3d.__all__}
EXAMPLES = {
    name: test
    for name, value in FACE.items()
    if not isinstance(value, str)
    for test in doctest.DocTestFinder(recurse=False).find(
        value, name, sys.modules[value.__module__], globs={"t3d": t3d}
    )
    if test.examples
}


def test_every_function_has_an_example() -> None:
    functions = {name for name, value in FACE.items() if isinstance(value, FunctionType)}
    shown = "".join(example.source for test in EXAMPLES.values() for example in test.examples)
    assert not [name for name in functions if f"t3d.{name}(" not in shown]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_shows(name: str) -> None:
    said: list[str] = []
    doctest.DocTestRunner().run(EXAMPLES[name], out=said.append)
    assert not said, "".join(said)
