"""Tests without their expected values, so that a program cannot know what to answer.

`assert f(2) == 4` becomes `assert ask(0, f(2))` for the process of the program, and the check
`_0 == 4` for the judge, which is another process. A check is *required* if an honest run must
reach it: it stands at the top of a snippet, or at the top of a function without `return` that
the top of the snippet calls by name. Assertions of other forms stay as they are.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_PURE = {"set", "frozenset", "tuple", "list", "dict", "int", "float", "complex", "bytes", "str"}


@dataclass(frozen=True)
class Check:
    """One assertion's condition."""

    template: str
    """An expression in the values `_0`, `_1`, ... that the program's process sends."""
    required: bool


@dataclass(frozen=True)
class SplitTests:
    """Tests for the two processes."""

    snippets: tuple[str, ...]
    checks: tuple[Check, ...]


def split_tests(tests: Sequence[str], ask: str) -> SplitTests:
    """Cut the expected values out; `ask` is the name that the snippets call.

    A snippet that does not parse stays as it is, and fails when it runs.
    """
    snippets, checks = [], []
    for test in tests:
        try:
            with warnings.catch_warnings(action="ignore"):  # Escapes such as "\\d" in its strings.
                tree = ast.parse(test)
        except (SyntaxError, ValueError):
            snippets.append(test)
            continue
        cutter = _Cutter(ask, checks, set(_required(tree)))
        snippets.append(ast.unparse(ast.fix_missing_locations(cutter.visit(tree))))
    return SplitTests(tuple(snippets), tuple(checks))


def _required(tree: ast.Module) -> Iterator[ast.Assert]:
    """Assertions that every run to the end executes."""
    functions: dict[str, ast.FunctionDef] = {}
    for statement in tree.body:
        match statement:
            case ast.Assert():
                yield statement
            case ast.FunctionDef(decorator_list=[]):
                functions[statement.name] = statement
            case ast.Expr(ast.Call(ast.Name(name))) if name in functions:
                leaves = (ast.Return, ast.Yield, ast.YieldFrom)
                if not any(isinstance(node, leaves) for node in ast.walk(functions[name])):
                    yield from (
                        node for node in functions[name].body if isinstance(node, ast.Assert)
                    )


@dataclass
class _Cutter(ast.NodeTransformer):
    ask: str
    checks: list[Check]
    """The checks so far, of all snippets."""
    required: set[ast.Assert]
    holes: list[ast.expr] = field(default_factory=list)
    """Expressions of the present assertion that the program's process evaluates."""

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        test, negated = node.test, False
        while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, negated = test.operand, not negated
        if isinstance(test, ast.Call):  # Whether it should be true or false is the judge's.
            truth = ast.UnaryOp(ast.Not(), ast.UnaryOp(ast.Not(), test))
            return self._ask(node, [truth], "not _0" if negated else "_0", hidden=True)
        if not isinstance(test, ast.Compare):
            return node
        self.holes = []
        sides = [test.left, *test.comparators]
        hidden = any(map(_hides, sides))
        plain_equality = len(sides) == 2 and isinstance(test.ops[0], ast.Eq)
        if not (hidden or plain_equality) or all(map(_is_literal, sides)):
            return node
        left, *comparators = map(self._cut, sides)
        condition: ast.expr = ast.Compare(left, test.ops, comparators)
        if negated:
            condition = ast.UnaryOp(ast.Not(), condition)
        template = ast.unparse(ast.fix_missing_locations(condition))
        return self._ask(node, self.holes, template, hidden)

    def _ask(
        self, node: ast.Assert, holes: list[ast.expr], template: str, hidden: bool
    ) -> ast.Assert:
        arguments = [ast.Constant(len(self.checks)), *holes]
        self.checks.append(Check(template, hidden and node in self.required))
        return ast.Assert(ast.Call(ast.Name(self.ask, ast.Load()), arguments, []), node.msg)

    def _cut(self, node: ast.expr) -> ast.expr:
        """The judge's part of one side; the rest goes to `holes`."""
        if _is_literal(node):
            return node
        if _hides(node):
            match node:
                case ast.BinOp(left, op, right):
                    return ast.BinOp(self._cut(left), op, self._cut(right))
                case ast.Call(func, [argument]):
                    return ast.Call(func, [self._cut(argument)], [])
        self.holes.append(node)
        return ast.Name(f"_{len(self.holes) - 1}", ast.Load())


def _hides(node: ast.expr) -> bool:
    """Whether a side holds a value that only the judge needs: `4`, or the 0.3 of `abs(x - 0.3)`."""
    match node:
        case ast.BinOp(left, _, right):
            return _is_literal(left) or _is_literal(right)
        case ast.Call(ast.Name("abs"), [argument], []):
            return _hides(argument)
    return _is_literal(node)


def _is_literal(node: ast.expr | None) -> bool:
    """Whether a value follows from the source alone."""
    match node:
        case ast.Constant():
            return True
        case ast.UnaryOp(_, operand):
            return _is_literal(operand)
        case ast.BinOp(left, _, right):
            return _is_literal(left) and _is_literal(right)
        case ast.List(items) | ast.Tuple(items) | ast.Set(items):
            return all(map(_is_literal, items))
        case ast.Dict(keys, values):
            return all(map(_is_literal, [*keys, *values]))
        case ast.Call(ast.Name(name), arguments, []):
            return name in _PURE and all(map(_is_literal, arguments))
    return False
