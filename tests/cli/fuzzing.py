"""Calls of every command with wrong options and damaged input, and what may come of them.

A case is plain data, so that it can be printed and tried again.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from t3d.cli.commands import COMMANDS
from t3d.cli.main import main
from t3d.core.files import parse_json
from t3d.core.store import TrajectoryStore
from t3d.models import from_pretrained
from tests.cli.damage import KINDS, TREES, Damage, apply
from tests.cli.inputs import CALLS

NUMBERS = [
    "-1", "0", "1", "2", "3", "5", "64", "300", "1.5", "0.5", "1", "2", "4", "8", "nan", ".inf",
    "-.inf", "1e-300", "1e300", "1e400", "1000000", str(2**31), str(2**63 - 1), "[1]", "[2, 4]",
    "[0]", "[.nan]", "null", "true", "false", "[]", "{}", "", "model",
]  # fmt: skip
NASTY = [
    "", " ", "x", "-1", "0", "1.5", ".nan", "1e400", str(2**63), "9" * 5000, "null", "true",
    "[]", "{}", "[[]]", "[null]", "[1, 2]", "[x, x]", "{a: 1}", "{a: {b: [c]}}", "{1: 2}", "[",
    "{", "]", "&a [*a]", "*a", "!!python/object:os.system x", "!!binary eA==", "'", '"', "- x",
    "a: b", "2020-01-01", "0x10", "1_000", "é", "日本", "\udcff", "\x00", "\x1b[31m", "a\nb",
    "..", ".", "../up", "model", "nothing", "nothing/x.jsonl", "own", "store", "[" * 3000,
    "{a: " * 300, "x" * 5000, "%s{}$HOME", "*", "--help",
]  # fmt: skip
"""Texts of options. No absolute path is among them: root may write everywhere."""

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            0,
            -1,
            1,
            2,
            7,
            10**6,
            2**31,
            2**63,
            10**30,
            0.5,
            -0.0,
            1e-300,
            1e300,
            math.nan,
        ]
    ),
    st.sampled_from(
        [math.inf, "", " ", "x", "\ud800", "\0", "../x", "1", "\\boxed{", "<|im_end|>"]
    ),
    st.sampled_from([[], {}, [[]], [None], {"": ""}, {"a": 1}, [1, "x"], "x" * 3000]),
    st.text(st.characters(blacklist_characters="/"), max_size=6),
    st.integers(-3, 300),
)
BYTES = st.sampled_from(["\xff" * 4, "\0", "9", '"', "\ud83d"])
TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "null",
            "{}",
            "[]",
            "[{}]",
            "{",
            '"x"',
            "\ufeff{}",
            "\x80\x04\x95",
            "PK\x03\x04",
            "a: b",
        ]
    ),
    st.sampled_from(["[" * 9999, '{"a":' * 9999, "\n\n\n", "\0" * 100, "1e999", "NaN", "\ud800"]),
    st.text(max_size=20),
)
INTERNALS = re.compile(
    r"Traceback|class_path|init_args|<class|jsonargparse|site-packages|RuntimeError|KeyError|"
    r"TypeError|Namespace\(|NoneType|object at 0x|\.py\b|Expected a|at::|c10|Errno"
)
ENDS = re.compile(r"t3d[ a-z-]*: (error: .{8,}|stopped.*)")


@dataclass(frozen=True)
class Case:
    """A call in a folder that holds copies of what it reads, some of them damaged."""

    command: str
    arguments: tuple[str, ...]
    inputs: tuple[str, ...]
    damages: tuple[Damage, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        found = json.loads(text)
        arguments, inputs = tuple(found["arguments"]), tuple(found["inputs"])
        return cls(found["command"], arguments, inputs, tuple(map(tuple, found["damages"])))

    @property
    def asks_for_much(self) -> bool:
        """Whether it may be a lot of work by right."""
        told = repr([self.arguments, [value for *_, value in self.damages]])
        numbers = re.findall(r"\d{3,}|e[3-9]\d*|inf", told)
        # What is left of a recipe may be its defaults.
        damaged = any(kind == "bytes" or name.endswith("yaml") for name, kind, *_ in self.damages)
        return bool(numbers) or damaged


def options(command: str) -> list[str]:
    """The options of a command, as its help lists them."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()), suppress(SystemExit):
        main([*command.split(), "--help"])
    return sorted(set(re.findall(r"^  --([\w.]+)", out.getvalue(), re.M)) - {"print_config"})


def cases(command: str, root: Path) -> st.SearchStrategy[Case]:
    """Calls of a command with one to three faults."""
    calls = [call for call in CALLS if call[0] == command]
    names = options(command)

    def faults(call: tuple[str, str, str]) -> st.SearchStrategy[Case]:
        words, inputs = call[1].split(), tuple(call[2].split())
        files = sorted(_files(root, inputs))
        trees = [name for name in files if name.endswith(TREES)]
        columns = [name for name in files if name.endswith(".parquet")]
        number = st.integers(0, 10**6)
        damages = [
            _damage(files, ["bytes"], number, BYTES),
            _damage(files, ["cut", "remove", "other kind", "link", "pipe"], number, st.none()),
            _damage(files, ["text"], number, TEXTS),
            _damage([name for name in inputs if "." not in name] or files, ["other kind", "link"],
                    number, st.none()),
        ]  # fmt: skip
        if trees:
            damages += [_damage(trees, ["leaf", "drop", "add", "leaf"], number, VALUES)] * 3
        if columns:
            values = st.sampled_from([None, "type", -1, 10**6, 2.5, "x", math.nan])
            damages.append(_damage(columns, ["column"], number, values))
        texts = st.one_of(
            st.sampled_from(NUMBERS),
            st.sampled_from(NUMBERS),
            st.sampled_from(NASTY),
            st.text(st.characters(blacklist_characters="/\0"), max_size=5),
        )
        option = (
            st.tuples(st.sampled_from(names), texts).filter(_is_safe).map("--{0[0]}={0[1]}".format)
        )
        word, damage = st.tuples(st.integers(0, len(words) - 1), texts), st.one_of(damages)
        nothing = st.just([])

        def make(more: list[str], swapped: tuple[int, str] | None, damaged: list[Damage]) -> Case:
            changed = (*_swapped(words, swapped), *more)
            return Case(command, changed, inputs, tuple(damaged))

        # One fault mostly, which another would hide.
        return st.one_of(
            st.builds(make, st.lists(option, min_size=1, max_size=2), st.none(), nothing),
            st.builds(make, nothing, st.none(), st.lists(damage, min_size=1, max_size=2)),
            st.builds(make, nothing, st.none(), st.lists(damage, min_size=1, max_size=1)),
            st.builds(make, st.lists(option, max_size=1), word, st.lists(damage, max_size=1)),
        )

    return st.sampled_from(calls).flatmap(faults)


def _files(root: Path, inputs: tuple[str, ...]) -> Iterator[str]:
    for name in inputs:
        path = root / name
        found = [path] if path.is_file() else path.rglob("*")
        yield from (str(file.relative_to(root)) for file in found if file.is_file())


def _damage(
    names: list[str], kinds: list[str], number: st.SearchStrategy[int], value: Any
) -> st.SearchStrategy[Damage]:
    assert set(kinds) <= set(KINDS)
    return st.tuples(st.sampled_from(names), st.sampled_from(kinds), number, value)


def _is_safe(option: tuple[str, str]) -> bool:
    """No thousand processes, and no sandbox switched off."""
    name, text = option
    return name != "unsafe_exec" and not (
        name == "num_workers" and re.search(r"[1-9]\d|[4-9]", text)
    )


def _swapped(words: list[str], swapped: tuple[int, str] | None) -> list[str]:
    """The words of a call with another one in a place, or without the one there."""
    if swapped is None:
        return words
    place, text = swapped
    before = words[place - 1] if place else ""
    if not _is_safe((before.lstrip("-"), text)):
        return words
    return [*words[:place], *([text] if text else []), *words[place + 1 :]]


ONCE = settings(
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ],
)
"""Each case is tried as it is drawn: it is small, and may take long."""
Call = Callable[[list[str]], tuple[int, str, str]]
"""Runs a call: exit code, stdout, stderr."""


def here(arguments: list[str]) -> tuple[int, str, str]:
    """In this process."""
    out, err = StringIO(), StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", StringIO("Why?\n"))
        # As the command line has it in a process of its own.
        warnings.simplefilter("ignore")
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception:
            code = 1
            traceback.print_exc()
    return code, out.getvalue(), err.getvalue()


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """As with Ctrl-C."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(
    case: Case, root: Path, folder: Path, call: Call = here, seconds: float = 10
) -> list[str]:
    """Try a case in a new folder: what is wrong with what came of it, and its last words."""
    work = folder / "work"
    work.mkdir(parents=True)
    try:
        for name in case.inputs:
            path = root / name
            (shutil.copytree if path.is_dir() else shutil.copy)(path, work / name)
        for damage in case.damages:
            apply(work, damage)
        before = _snapshot(work)
        with chdir(work), stopped_after(seconds):
            code, out, err = call([*case.command.split(), *case.arguments])
        problems = list(_problems(case, code, out, err))
        after = _snapshot(work)
        with chdir(work):
            problems += _wrong_files(case, code, before, after)
    finally:
        shutil.rmtree(folder)
    return [*problems, (err.strip().splitlines() or [""])[-1]]


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with its size and its time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = (
            FOLDER if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
        )
    return found


def _problems(case: Case, code: int, out: str, err: str) -> Iterator[str]:
    # One that was stopped in a finalizer goes on, and is stopped again.
    err = re.sub(r"Exception ignored in.*?\nKeyboardInterrupt:? *\n", "", err, flags=re.DOTALL)
    last = (err.strip().splitlines() or [""])[-1]
    if "Traceback" in err:
        yield f"a traceback:\n{err[-3000:]}"
    elif code == 130 and not case.asks_for_much:
        yield "takes too long"
    elif code not in (0, 1, 2, 130):
        yield f"exit code {code}: {err[-500:]}"
    elif code and not ENDS.fullmatch(last):
        yield f"exit code {code} without a sentence: {err[-500:]!r}"
    elif code and (found := INTERNALS.search(last)):
        yield f"internals ({found[0]}): {last}"
    elif code and len(last) > 1500:
        yield f"a sentence of {len(last)} characters: {last[:300]}"
    elif code == 0 and not out:
        yield "exit code 0 without a word"


FOLDER = (0, 0)
RESUMABLE = tuple(name for name, command in COMMANDS.items() if command.resumable)


def _wrong_files(
    case: Case, code: int, before: dict[str, Any], after: dict[str, Any]
) -> Iterator[str]:
    """What was left half written, or cannot be read again."""
    # An empty folder is as good as none; the cache is where a task of the harness puts it.
    changed = [n for n in after if before.get(n) != after[n] != FOLDER and "cache" not in n]
    partial = [name for name in changed if name.endswith(".partial") or name.startswith(".out")]
    if partial and not (case.command in RESUMABLE and code):
        yield f"left behind: {partial[:5]}"
    gone = sorted(before.keys() - after.keys())
    # A teacher that was adapted stays for the corrected recipe.
    adapted = any(name.startswith("out/teacher/") for name in changed)
    if code in (1, 2) and not adapted and (changed or gone):
        yield f"exit code {code}, but changed {changed[:5]} {gone[:5]}"
    if code:
        return
    for name in changed:
        path = Path(name)
        try:
            if path.name == "config.json":
                lm = from_pretrained(path.parent)
                assert all(weight.isfinite().all() for weight in lm.model.parameters())
            elif path.name == "manifest.json":
                TrajectoryStore.open(path.parent).read()
            elif path.suffix == ".json" and path.is_file():
                parse_json(path.read_text(), parse_constant=_refuse)
            elif path.suffix in (".md", ".html", ".png", ".jsonl") and path.is_file():
                assert path.stat().st_size, "it is empty"
        except Exception as error:
            yield f"exit code 0, but {name} cannot be read: {type(error).__name__}: {error}"


def _refuse(name: str) -> None:
    raise ValueError(f"holds {name}")


def without_numbers(problem: str) -> str:
    """What kinds of problems have in common."""
    last = problem.strip().splitlines()
    return re.sub(r"/\S+/work/|\d+(\.\d+)?", "N", (last or [""])[-1])[:160]


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Nothing of the network, of the harness's own tasks, or of long measurements."""
    from lm_eval.tasks import TaskManager

    from t3d.bench import roofline

    patch.setattr(TaskManager.__init__, "__defaults__", (None, None, False, None))
    patch.setitem(roofline._COPY, "cpu", 1 << 16)
    patch.setitem(roofline._SIDE, "cpu", 64)
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr("sys.stdin", StringIO(""))
