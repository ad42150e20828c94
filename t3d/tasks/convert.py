"""From the benchmarks' published rows to records."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

from t3d.tasks.protocols import CODE_HEADER
from t3d.tasks.records import Record

Rows = Sequence[dict[str, Any]]
"""Rows of one published file."""

_DEFINITION = re.compile(r"^def[ \t]+(\w+)[^\n]*", re.MULTILINE)


def gsm8k(rows: Rows, *, split: str, source: str) -> list[Record]:
    """`question`, and `answer`: a rationale that ends with `#### N`."""
    return [
        Record(
            id=f"gsm8k/{split}/{index}",
            dataset="gsm8k",
            split=split,
            domain="math",
            question=row["question"],
            source=source,
            license="MIT",
            answer=row["answer"].rpartition("####")[2].strip(),
            reference=row["answer"],
        )
        for index, row in enumerate(rows)
    ]


def math500(rows: Rows, *, source: str) -> list[Record]:
    """`problem`, `solution`, `answer`, `subject`, `level`, `unique_id`."""
    return [
        Record(
            id=f"math500/{row['unique_id'].removesuffix('.json')}",
            dataset="math500",
            split="test",
            domain="math",
            question=row["problem"].strip(),
            source=source,
            license="MIT (contested)",
            answer=row["answer"].strip(),
            reference=row["solution"],
            meta={key: row[key] for key in ("level", "subject", "unique_id")},
        )
        for row in rows
    ]


def humaneval(rows: Rows, *, source: str) -> list[Record]:
    """`task_id`, `prompt`, `canonical_solution`, `test`, `entry_point`."""
    return [
        Record(
            id=f"humaneval/{row['task_id'].rpartition('/')[2]}",
            dataset="humaneval",
            split="test",
            domain="code",
            question=f"You need to complete this code:\n{row['prompt']}\n",
            source=source,
            license="MIT",
            prompt_prefix=f"{CODE_HEADER}{row['prompt']}\n",
            test_method="function",
            tests=[f"\n{row['test']}\ncheck({row['entry_point']})"],
            time_limit_s=1,
            entry_point=row["entry_point"],
            reference=row["prompt"] + row["canonical_solution"],
            meta={
                "task_id": row["task_id"],
                "raw_prompt": row["prompt"],
                "canonical_solution": row["canonical_solution"],
                "raw_test": row["test"],
            },
        )
        for row in rows
    ]


def mbpp(full: Rows, sanitized: Rows, *, split: str, source: str) -> list[Record]:
    """Both editions, joined by `task_id` and sorted by it.

    The full one has `text`, `code`, `test_list`, `test_setup_code`, `challenge_test_list`; the
    sanitized one `prompt`, `code`, `test_imports`, `test_list`.
    """
    edited = {row["task_id"]: row for row in sanitized}
    return [
        _mbpp(row, edited.get(row["task_id"]), split, source)
        for row in sorted(full, key=lambda row: row["task_id"])
    ]


def _mbpp(row: dict[str, Any], edited: dict[str, Any] | None, split: str, source: str) -> Record:
    text, code = _lf(row["text"]), _lf(row["code"])
    # As the authors' files have them; a few end with a space.
    asserts = [_lf(test).strip() for test in row["test_list"]]
    challenge = [_lf(test).strip() for test in row["challenge_test_list"]]
    entry_point = called_function(code, asserts[0])
    fixed = code_prefix(code, entry_point, text)
    # The authors take a program's first function for the one that is asked for, and have no
    # problem whose program begins with a class.
    first = re.search(r"^[ \t]*def[ \t]", code, re.MULTILINE)
    in_t3d = first is not None and first[0].startswith("def")
    prefix, tests, opened = fixed, asserts, entry_point
    if in_t3d:
        definition = _DEFINITION.search(code)
        assert definition is not None
        opened = definition[1]
        preamble = code[: definition.start()].rstrip()
        prefix = CODE_HEADER + (f"{preamble}\n" if preamble else "")
        prefix += _with_docstring(definition[0], text)
        lines = "".join(f"    {test}\n" for test in asserts + challenge)
        tests = [f"\n\ndef check(candidate):\n{lines}\ncheck({opened})"]
    return Record(
        id=f"mbpp/{row['task_id']}",
        dataset="mbpp",
        split=split,
        domain="code",
        question=with_first_test(text, asserts),
        source=source,
        license="CC-BY-4.0",
        prompt_prefix=prefix,
        test_method="function",
        tests=tests,
        test_setup=_lf(row["test_setup_code"]),
        time_limit_s=1,
        entry_point=entry_point,
        reference=code,
        meta={
            "task_id": row["task_id"],
            "text": text,
            "asserts": asserts,
            "challenge_asserts": challenge,
            "in_t3d": in_t3d,
            "prefix_fn": opened,
            "prefix_matches_entry_point": opened == entry_point,
            "prompt_prefix_fixed": fixed,
            "is_sanitized": edited is not None,
            "sanitized": edited
            and {
                "prompt": _lf(edited["prompt"]),
                "test_imports": [_lf(line) for line in edited["test_imports"]],
                "test_list": [_lf(test) for test in edited["test_list"]],
                "code": _lf(edited["code"]),
            },
        },
    )


def _lf(text: str) -> str:
    return text.replace("\r\n", "\n")


def with_first_test(text: str, asserts: Sequence[str]) -> str:
    """MBPP's question: a name and its arguments can only be read off a test."""
    return f"{text}\nYour code should pass the test:\n{asserts[0]}\n"


def _parse(code: str) -> ast.Module:
    with warnings.catch_warnings():
        # Some programs write regular expressions as plain strings.
        warnings.simplefilter("ignore")
        return ast.parse(code)


def called_function(code: str, test: str) -> str:
    """The outermost call in a test to a function that the program defines."""
    names = {match[1] for match in _DEFINITION.finditer(code)}
    return next(
        node.func.id
        for node in ast.walk(_parse(test))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    )


def code_prefix(code: str, function: str, text: str) -> str:
    """A turn that begins with a function's first line, as the program has it, and a docstring."""
    line = next(match[0] for match in _DEFINITION.finditer(code) if match[1] == function)
    return CODE_HEADER + _with_docstring(line.rstrip(), text)


def _with_docstring(line: str, text: str) -> str:
    return f'{line}\n    """ {text}\n    """\n\n'


def continuation(prefix: str, code: str, *, holds_preamble: bool) -> str:
    """A program as the rest of a turn whose prefix ends with one of its functions' docstring.

    The function's body comes first, then what else the program needs: names are looked up when
    the function is called.

    Args:
        holds_preamble: the prefix also has what precedes the function in the program.
    """
    name = _DEFINITION.findall(prefix)[-1]
    tree = _parse(code).body
    index, function = next(
        (index, node)
        for index, node in enumerate(tree)
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    body = ast.unparse(function).partition("\n")[2]
    rest = tree[index + 1 :] if holds_preamble else tree[:index] + tree[index + 1 :]
    return "\n".join([body, *map(ast.unparse, rest), "```"])
