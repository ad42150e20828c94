"""Tests without their expected values, so that a program cannot know what to answer.

`assert f(2) == 4` becomes `assert ask(0, f(2))` for the process of the program, and the check
`_0 == 4` for the judge, which is another process. Of other assertions the judge is told whether
they hold. So the judge counts the checks, and a program does not pass by tests that check nothing.

A check is *required* if an honest run must reach it: it stands at the top of a snippet, of a test
method, or of a function without `return` that the top of a snippet calls by name.

Functions `test_*` that nobody calls and classes of unittest are run, as pytest would run them.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_PURE = {"set", "frozenset", "tuple", "list", "dict", "int", "float", "complex", "bytes", "str"}
_METHODS: dict[str, type[ast.cmpop]] = {
    "assertEqual": ast.Eq,
    "assertNotEqual": ast.NotEq,
    "assertIs": ast.Is,
    "assertIsNot": ast.IsNot,
    "assertIn": ast.In,
    "assertNotIn": ast.NotIn,
    "assertGreater": ast.Gt,
    "assertGreaterEqual": ast.GtE,
    "assertLess": ast.Lt,
    "assertLessEqual": ast.LtE,
}
"""Assertion methods of unittest that compare two values."""


@dataclass(frozen=True)
class Check:
    """One assertion's condition."""

    template: str
    """Expression over the values `_0`, `_1`, ... that the program's process sends."""
    required: bool


@dataclass(frozen=True)
class SplitTests:
    """Tests for the two processes."""

    snippets: tuple[str, ...]
    checks: tuple[Check, ...]


def split_tests(tests: Sequence[str], ask: str) -> SplitTests:
    """Cut the expected values out of tests; `ask` is the name that the snippets call instead.

    A snippet that does not parse stays as it is, and fails when it runs.
    """
    trees = [_parse(test) for test in tests]
    parsed = [tree for tree in trees if tree is not None]
    calls = ast.Module(list(_calls(parsed)), [])
    required = set(_required([*parsed, calls]))
    snippets: list[str] = []
    checks: list[Check] = []
    for test, tree in zip([*tests, ""], [*trees, calls], strict=True):
        if tree is None:
            snippets.append(test)
            continue
        num_checks = len(checks)
        try:
            cut = _Cutter(ask, checks, required).visit(tree)
            test = ast.unparse(ast.fix_missing_locations(cut))
        except RecursionError:  # Python itself parses deeper: it runs uncut, and reports its end.
            del checks[num_checks:]
            if any(isinstance(statement, ast.Assert) for statement in tree.body):
                test += f"\nassert {ask}({num_checks}, True)"
                checks.append(Check("_0", True))
        snippets.append(test)
    return SplitTests(tuple(snippets), tuple(checks))


def _parse(test: str) -> ast.Module | None:
    """A snippet without the parts that run in a main program only; None if it is no Python."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Escapes such as "\\d" in its strings.
            tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    kept: list[ast.stmt] = []
    for statement in tree.body:
        match statement:
            case ast.If(ast.Compare(ast.Name("__name__"))):
                continue
            case ast.Expr(ast.Call(ast.Attribute(ast.Name("unittest"), "main"))):
                continue
        kept.append(statement)
    return ast.Module(kept, tree.type_ignores)


def _calls(trees: Sequence[ast.Module]) -> Iterator[ast.stmt]:
    """Statements that call the test functions and classes which no snippet calls."""
    used = {
        node.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for statement in (statement for tree in trees for statement in tree.body):
        match statement:
            case ast.FunctionDef(decorator_list=[]) if (
                statement.name.startswith("test")
                and statement.name not in used
                and _takes_nothing(statement.args)
            ):
                yield from ast.parse(f"{statement.name}()").body
            case ast.ClassDef() if _is_test_case(statement):
                load = "__import__('unittest').defaultTestLoader.loadTestsFromTestCase"
                yield from ast.parse(f"{load}({statement.name}).debug()").body


def _takes_nothing(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    return positional == len(arguments.defaults) and None not in arguments.kw_defaults


def _is_test_case(statement: ast.ClassDef) -> bool:
    return any(ast.unparse(base).endswith("TestCase") for base in statement.bases)


def _required(trees: Sequence[ast.Module]) -> Iterator[ast.stmt]:
    """Statements that every complete run executes."""
    functions: dict[str, ast.FunctionDef] = {}
    for statement in (statement for tree in trees for statement in tree.body):
        yield statement
        match statement:
            case ast.FunctionDef(decorator_list=[]):
                functions[statement.name] = statement
            case ast.Expr(ast.Call(ast.Name(name))) if name in functions:
                yield from _straight(functions[name])
            case ast.ClassDef(decorator_list=[]) if _is_test_case(statement):
                for method in statement.body:
                    match method:
                        case ast.FunctionDef(decorator_list=[]) if method.name.startswith("test"):
                            yield from _straight(method)


def _straight(function: ast.FunctionDef) -> list[ast.stmt]:
    """The statements of a function that cannot end early."""
    leaves = (ast.Return, ast.Yield, ast.YieldFrom)
    early = any(isinstance(node, leaves) for node in ast.walk(function))
    return [] if early else function.body


@dataclass
class _Cutter(ast.NodeTransformer):
    ask: str
    checks: list[Check]
    """Checks found so far, of all snippets."""
    required: set[ast.stmt]
    holes: list[ast.expr] = field(default_factory=list)
    """Expressions of the current assertion that the program's process evaluates."""

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        return self._check(node, node.test, node.msg)

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | list[ast.stmt]:
        match node.value:
            case ast.Call(ast.Attribute(ast.Name("self"), name), [left, right, *_], []) if (
                name in _METHODS
            ):
                return self._check(node, ast.Compare(left, [_METHODS[name]()], [right]))
            case ast.Call(ast.Attribute(ast.Name("self"), "assertTrue"), [truth, *_], []):
                return self._check(node, truth)
            case ast.Call(ast.Attribute(ast.Name("self"), "assertFalse"), [truth, *_], []):
                return self._check(node, ast.UnaryOp(ast.Not(), truth))
            case ast.Call(ast.Attribute(_, name)) if name.startswith("assert"):
                return self._then_tell(node)
        return node

    def visit_With(self, node: ast.With) -> ast.stmt | list[ast.stmt]:
        for item in node.items:
            match item.context_expr:
                case ast.Call(ast.Attribute(_, name)) if name.startswith("assert"):
                    return self._then_tell(node)
        return self._visited(node)

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        return self._guard(node, [*node.body, *node.orelse])

    def visit_Try(self, node: ast.Try) -> ast.stmt | list[ast.stmt]:
        handled = [statement for handler in node.handlers for statement in handler.body]
        return self._guard(node, [*node.body, *handled, *node.orelse, *node.finalbody])

    def _guard(self, node: ast.stmt, inner: list[ast.stmt]) -> ast.stmt | list[ast.stmt]:
        """Count a statement as a check if it raises where something is wrong."""
        return self._then_tell(node) if any(map(_raises, inner)) else self._visited(node)

    def _then_tell(self, node: ast.stmt) -> list[ast.stmt]:
        """The statement, and after it a message to the judge that it raised nothing."""
        return [self._visited(node), self._ask(node, [ast.Constant(True)], "_0")]

    def _visited(self, node: ast.stmt) -> ast.stmt:
        visited = self.generic_visit(node)
        assert isinstance(visited, ast.stmt)
        return visited

    def _check(
        self, node: ast.stmt, condition: ast.expr, message: ast.expr | None = None
    ) -> ast.stmt:
        test, negated = condition, False
        while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, negated = test.operand, not negated
        if _is_constant(test):  # No program can change its value, so it checks nothing.
            return node
        if isinstance(test, ast.Compare):
            sides = [test.left, *test.comparators]
            plain = len(sides) == 2 and isinstance(test.ops[0], ast.Eq)
            hidden = any(map(_hides, sides))
            if hidden or plain:
                self.holes = []
                left, *comparators = map(self._cut, sides)
                whole: ast.expr = ast.Compare(left, test.ops, comparators)
                if negated:
                    whole = ast.UnaryOp(ast.Not(), whole)
                template = ast.unparse(ast.fix_missing_locations(whole))
                return self._ask(node, self.holes, template, message, plain and not hidden)
        # The double negation makes it true or false, which is sent; the judge decides.
        truth = ast.UnaryOp(ast.Not(), ast.UnaryOp(ast.Not(), test))
        return self._ask(node, [truth], "not _0" if negated else "_0", message)

    def _ask(
        self,
        node: ast.stmt,
        holes: list[ast.expr],
        template: str,
        message: ast.expr | None = None,
        plain: bool = False,
    ) -> ast.Assert:
        arguments = [ast.Constant(len(self.checks)), *holes]
        keywords = [ast.keyword("plain", ast.Constant(True))] if plain else []
        self.checks.append(Check(template, node in self.required))
        return ast.Assert(ast.Call(ast.Name(self.ask, ast.Load()), arguments, keywords), message)

    def _cut(self, node: ast.expr) -> ast.expr:
        """The judge's part of one side of a comparison; the program's part goes to `holes`."""
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


def _raises(statement: ast.stmt) -> bool:
    match statement:
        case ast.Raise() | ast.Expr(ast.Call(ast.Attribute(ast.Name("self"), "fail"))):
            return True
        case ast.Assert(ast.Constant(value)):
            return not value
    return False


def _hides(node: ast.expr) -> bool:
    """Whether a side holds a value that only the judge needs: `4`, or the 0.3 of `abs(x - 0.3)`."""
    match node:
        case ast.BinOp(left, _, right):
            return _is_literal(left) or _is_literal(right)
        case ast.Call(ast.Name("abs"), [argument], []):
            return _hides(argument)
    return _is_literal(node)


def _is_constant(node: ast.expr) -> bool:
    """Whether a condition is true, or false, for every program."""
    match node:
        case ast.Compare(left, _, comparators):
            return all(map(_is_literal, [left, *comparators]))
        case ast.BoolOp(_, values):
            return all(map(_is_constant, values))
        case ast.Tuple(items) | ast.List(items) | ast.Set(items) if items:
            # `assert (f(2) == 4, "message")` asserts a tuple that is not empty.
            return not all(isinstance(item, ast.Starred) for item in items)
        case ast.Lambda() | ast.GeneratorExp() | ast.JoinedStr():
            return True
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
