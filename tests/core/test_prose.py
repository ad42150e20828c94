"""Docstrings of attributes read well where an editor shows them alone, without the attribute."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "t3d"
PREPOSITIONS = {
    *("about", "above", "after", "against", "along", "among", "around", "as", "at", "before"),
    *("behind", "below", "beside", "between", "beyond", "by", "during", "for", "from", "in"),
    *("inside", "into", "of", "on", "onto", "out", "over", "per", "since", "than", "through"),
    *("to", "towards", "under", "until", "up", "upon", "via", "with", "within", "without"),
}


def attribute_docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string that follows an assignment."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", ())
        for before, after in pairwise(body if isinstance(body, list) else ()):
            if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                value = after.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield after.lineno, value.value


def is_fragment(text: str) -> bool:
    """Whether a text begins with a preposition, as in "Of the cache"."""
    return text.split()[0].strip(",.;:").lower() in PREPOSITIONS


FLOORS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir())


@pytest.mark.parametrize("floor", FLOORS)
def test_no_attribute_docstring_begins_with_a_preposition(floor: str) -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted((PACKAGE / floor).rglob("*.py"))
        for line, text in attribute_docstrings(path)
        if is_fragment(text)
    ]
    assert not found, "\n".join(found)


def test_a_fragment_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('class Group:\n    rows: int\n    """Of the cache."""\n', encoding="utf-8")
    assert [(line, is_fragment(text)) for line, text in attribute_docstrings(path)] == [(3, True)]
    assert not is_fragment("Rows of the cache.")
