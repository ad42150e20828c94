"""Programs in the sandbox: honest ones pass, the hostile corpus does not, and leaves nothing."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sandbox import Row, humaneval, mbpp, mbpp_asserts, rows
from t3d.grading import code, sandbox
from t3d.grading.code import CodeVerdict, Program, grade_programs, main
from t3d.grading.expected import split_tests
from t3d.grading.values import Opaque, decode, encode
from t3d.grading.sandbox import Backend, SandboxError, find_backend, run
from tests.grading.hostile.corpus import CORPUS, FORGED, HONEST, LOOPED, TESTS

DATA = Path(__file__).parents[3] / "shared" / "data"


def found() -> list[Backend]:
    backends: list[Backend] = []
    for backend in ("bubblewrap", "namespaces") if sys.platform == "linux" else ():
        try:
            run("", ["pass"], "", 1.0, backend)
            backends.append(backend)
        except (OSError, SandboxError):
            continue
    return backends


BACKENDS = found()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setattr(code, "find_backend", lambda: request.param)
    return request.param


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


def reasons(programs: list[str], tests: tuple[str, ...] = TESTS, **fields: Any) -> list[str]:
    return [v.reason for v in grade_programs([Program(p, tests, **fields) for p in programs])]


# The corpus.


def test_no_hostile_program_passes_and_none_leaves_anything(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "secret").write_text("secret")
    before = in_namespaces()
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = {"@SECRET@": tmp_path / "secret", "@OUTSIDE@": tmp_path / "outside"}
        places |= {"@PORT@": server.getsockname()[1]}
        programs: list[Program] = []
        for name, (_, source) in CORPUS.items():
            for place, value in places.items():
                source = source.replace(place, str(value))
            limit = 1.0 if name in ("memory", "memory_at_once") else 0.05
            programs.append(Program(source, TESTS, time_limit_s=limit))
        honest = [Program(HONEST, TESTS, time_limit_s=0.05)] * 10
        # Between the hostile ones, in time as in order.
        mixed = [p for i in range(10) for p in (*programs[i::10], honest[i])]
        verdicts = grade_programs(mixed, num_workers=4)
    left = in_namespaces() - before
    wrong = {}
    names = {program.program: name for name, program in zip(CORPUS, programs, strict=True)}
    for program, verdict in zip(mixed, verdicts, strict=True):
        name = names.get(program.program, "honest")
        expected = "passed" if name == "honest" else CORPUS[name][0]
        if not re.fullmatch(expected, verdict.reason) or verdict.passed != (name == "honest"):
            wrong[name] = verdict.reason
    assert not wrong
    assert len(CORPUS) >= 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())
    deadline = time.monotonic() + 30  # Sandboxes of other tests end; a survivor stays.
    while left & in_namespaces() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left & in_namespaces()


def test_forgers_fail_where_no_value_can_be_hidden(backend: Backend) -> None:
    names = [name for name in FORGED if name.startswith(("equal", "told", "patched", "strings"))]
    got = reasons([HONEST, *(FORGED[name][1] for name in names)], LOOPED)
    assert got[0] == "passed"
    assert "passed" not in got[1:]


# Honest programs.


HONEST_FORMS = {
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    "f = lambda x: P(x).x ** 2",
    "output": "print('{\"token\": 1}' * 100000)\n" + HONEST,
    "main_part": "if __name__ == '__main__':\n    1 / 0\n" + HONEST,
    "finished_thread": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\n"
    + HONEST,
    "daemon_thread": "import threading\n"
    "threading.Thread(target=threading.Event().wait, daemon=True).start()\n" + HONEST,
    "a_file_of_its_own": "open('/tmp/x', 'w').write('3')\nassert open('x').read() == '3'\n"
    + HONEST,
    "short_sleep": "import time\ntime.sleep(0.5)\n" + HONEST,
    "float": "def f(x): return float(x * x)",
    "fraction": "from fractions import Fraction\ndef f(x): return Fraction(x) ** 2",
    "decimal": "from decimal import Decimal\ndef f(x): return Decimal(x) ** 2",
    "enum": "from enum import IntEnum\nclass E(IntEnum):\n    A = 9\n    B = 16\n"
    "def f(x): return E(x * x)",
}


def test_honest_programs_pass(backend: Backend) -> None:
    got = dict(zip(HONEST_FORMS, reasons(list(HONEST_FORMS.values())), strict=True))
    assert got == dict.fromkeys(HONEST_FORMS, "passed")


def test_setup_and_snippets_share_the_namespace_of_the_program(backend: Backend) -> None:
    program = Program(HONEST, ("y = f(n)", "assert y == 25", "assert g(2) == 4"), "n = 5\ng = f")
    assert grade_programs([program]) == [CodeVerdict(True, "passed")]
    assert reasons([HONEST], ("assert f(2) ==",)) == ["error: SyntaxError"]
    assert reasons([HONEST], ("assert f(10 ** 9000) == 10 ** 18000",)) == ["passed"]


def test_order_is_kept_and_nothing_is_no_work(backend: Backend) -> None:
    assert grade_programs([]) == []
    sources = [HONEST if i % 3 else "def f(x): return 0" for i in range(9)]
    assert reasons(sources) == ["passed" if i % 3 else "assertion" for i in range(9)]


def samples() -> list[tuple[str, list[Row]]]:
    """Every sixth problem of HumanEval, every fourteenth of MBPP; none without the data."""
    files = [DATA / "humaneval.jsonl", DATA / "mbpp_test.jsonl"]
    return [
        (path.stem, rows(path)[1::step])
        for path, step in zip(files, (6, 14), strict=True)
        if path.exists()
    ]


@pytest.mark.parametrize(("name", "sample"), samples())
def test_reference_programs_pass(backend: Backend, name: str, sample: list[Row]) -> None:
    program = humaneval if name == "humaneval" else mbpp_asserts
    verdicts = grade_programs(list(map(program, sample)))
    assert {
        row["id"] for row, verdict in zip(sample, verdicts, strict=True) if not verdict.passed
    } == set()


@pytest.mark.parametrize("path", [path for path in [DATA / "mbpp_test.jsonl"] if path.exists()])
def test_two_problems_of_upstreams_mbpp_have_no_solution(backend: Backend, path: Path) -> None:
    chosen = [row for row in rows(path) if row["id"] in ("mbpp/56", "mbpp/349", "mbpp/367")]
    got = {
        row["id"]: v.passed
        for row, v in zip(chosen, grade_programs(list(map(mbpp, chosen))), strict=True)
    }
    assert got == {"mbpp/56": False, "mbpp/349": False, "mbpp/367": True}


# Values that cross, and tests without their expected values.

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
)
HASHABLE = st.recursive(
    SCALARS, lambda s: st.tuples(s, s) | st.frozensets(s, max_size=3), max_leaves=4
)
VALUES = st.recursive(
    HASHABLE,
    lambda s: (
        st.lists(s, max_size=3)
        | st.dictionaries(HASHABLE, s, max_size=3)
        | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
def test_values_cross_unchanged(value: object) -> None:
    crossed = decode(json.loads(json.dumps(encode(value))))
    assert crossed == value
    assert type(crossed) is type(value)


def test_what_defines_its_own_equality_does_not_cross() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

    class Seven(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    with pytest.raises(Opaque):
        encode([Equal()])
    assert type(decode(encode(Seven(7)))) is int
    assert decode(["opaque"]) != 7


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
        ("assert f(1) == g(1)", [False]),
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


# The sandbox itself.


def test_bubblewraps_command_line_gives_nothing_but_the_interpreter() -> None:
    line = sandbox.command("bubblewrap")
    options, inner = line[: line.index("--")], line[line.index("--") + 1 :]
    assert inner == sandbox.interpreter()
    assert {"--unshare-all", "--die-with-parent", "--clearenv", "--disable-userns"} <= set(options)
    assert options[options.index("--cap-drop") + 1] == "ALL"
    bound = [options[i + 1] for i, option in enumerate(options) if option == "--ro-bind"]
    assert bound == sandbox.read_only_paths()
    assert not any(option.startswith(("--bind", "--dev-bind", "--share")) for option in options)
    assert not any(Path.home().is_relative_to(path) for path in bound)


def test_without_a_sandbox_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> str:
        raise SandboxError("unshare: Operation not permitted")

    find_backend.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "run", refuse)
        with pytest.raises(ValueError, match="install bubblewrap.*unsafe_exec=True"):
            grade_programs([Program(HONEST, TESTS)])
    find_backend.cache_clear()


def test_unsafe_programs_run_without_a_sandbox() -> None:
    programs = [HONEST, "import os\nos._exit(0)", "while True: pass", "def f(x): return 0"]
    items = [Program(program, TESTS, time_limit_s=0.05) for program in programs]
    verdicts = grade_programs(items, unsafe_exec=True)
    assert [v.reason for v in verdicts] == ["passed", "no_verdict", "timeout", "assertion"]


@pytest.mark.parametrize(
    "output", ["", "passed", '{"token": "0", "reason": "passed"}'], ids=["none", "text", "token"]
)
def test_a_verdict_without_the_runs_token_is_none(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sandbox, "command", lambda backend: ["/bin/sh", "-c", f"cat > /dev/null; echo '{output}'"]
    )
    assert run(HONEST, TESTS, "", 1.0, "none") == "no_verdict"


def test_a_sandbox_that_fails_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = ["/bin/sh", "-c", "cat > /dev/null; echo mount: refused >&2; exit 125"]
    monkeypatch.setattr(sandbox, "command", lambda backend: failing)
    with pytest.raises(SandboxError, match="mount: refused"):
        run(HONEST, TESTS, "", 1.0, "none")


@pytest.mark.parametrize(
    "fields", [{"tests": ()}, {"time_limit_s": 0.0}, {"time_limit_s": float("nan")}]
)
def test_a_program_that_can_have_no_verdict_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Program(**dict[str, Any](program="", tests=TESTS) | fields)


# The command.


def test_the_command_prints_a_verdict_a_line(tmp_path: Path, backend: Backend) -> None:
    lines = [
        {"program": HONEST, "tests": list(TESTS), "test_setup": ""},
        {"program": "import os\nos._exit(0)", "tests": list(TESTS), "id": "ignored"},
        {"program": "x = n", "tests": ["assert x == 1"], "test_setup": "", "time_limit_s": 1},
    ]
    path = tmp_path / "programs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-W", "error", "-m", "t3d.grading.code", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"passed": True, "reason": "passed"},
        {"passed": False, "reason": "no_verdict"},
        {"passed": False, "reason": "error: NameError"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON"),
        ("[]", "2: a row must be an object"),
        ('{"program": ""}', "2: key 'tests' is missing"),
        ('{"tests": []}', "2: key 'program' is missing"),
        ('{"program": 1, "tests": ["x"]}', "2: 'program' must be a string"),
        ('{"program": "", "tests": "x"}', "2: 'tests' must be a list"),
        ('{"program": "", "tests": []}', "2: tests is empty"),
        ('{"program": "", "tests": ["x"], "test_setup": null}', "2: 'test_setup' must be"),
        ('{"program": "", "tests": ["x"], "time_limit_s": "1"}', "2: 'time_limit_s' must be"),
        ('{"program": "", "tests": ["x"], "time_limit_s": -1}', "2: time_limit_s is -1"),
    ],
)
def test_bad_rows_name_file_line_and_key(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text(json.dumps({"program": "", "tests": ["x"]}) + "\n" + line + "\n")
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert f"{path}:{message}" in captured.err
    assert captured.out == ""


def test_an_absent_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.jsonl")]) == 2
    assert "absent.jsonl" in capsys.readouterr().err
