"""The sandbox itself: its backends, what is refused, and what a verdict is believed by."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from t3d.grading import sandbox
from t3d.grading.code import Program, grade_programs
from t3d.grading.sandbox import Backend, SandboxError, find_backend, run
from tests.grading.hostile.corpus import HONEST, TESTS
from tests.grading.sandboxes import BACKENDS


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


ENDED = """
import os, signal, time
from t3d.grading.runner import Watcher

ended, tell = os.pipe()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        while time.process_time() < 0.4: pass
        os._exit(0)
    os.wait()
    os.write(tell, b"-")
    signal.pause()
os.read(ended, 1)
limits = {"cpu_limit_s": 0.2, "isolated": False, "max_processes": 9, "memory_bytes": 1 << 40}
print(Watcher(limits, child, child, -1)._exceeded())
os.kill(child, signal.SIGKILL)
"""


@pytest.mark.parametrize("source", [ENDED] if BACKENDS else [])
def test_the_time_of_processes_that_ended_counts(source: str) -> None:
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "timeout\n"


NO_NAMESPACES = """
import ctypes, os, time
uid, gid = os.getuid(), os.getgid()
assert ctypes.CDLL(None).unshare(0x10000000) == 0
ids = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
for name, text in ids.items():
    with open(f"/proc/self/{name}", "w") as file: file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file: file.write("0")
from t3d.grading.code import Program, grade_programs
start = time.monotonic()
try:
    grade_programs([Program("x = 1", ("assert x == 1",))])
except ValueError as error:
    print(round(time.monotonic() - start), error)
"""


@pytest.mark.parametrize("source", [NO_NAMESPACES] if BACKENDS else [])
def test_without_user_namespaces_it_is_said_at_once(source: str) -> None:
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    seconds, said = done.stdout.split(maxsplit=1)
    assert int(seconds) <= 3
    assert "namespaces: [Errno 28] unshare" in said


@pytest.mark.parametrize(
    ("script", "refusal"),
    [
        ("#!/bin/sh\necho no namespace >&2\nexit 1\n", "no namespace"),
        ("#!/absent/sh\n", "No such file"),
        ("#!/bin/sh\nkill -9 $$\n", "exit status -9"),
    ],
)
def test_a_bubblewrap_that_does_not_start_is_passed_over(
    script: str, refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(script)
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", "elsewhere", prepend=":")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sandbox.os, "geteuid", lambda: 1000)
    assert sandbox.command("bubblewrap")[0] == str(bwrap)
    with pytest.raises(SandboxError, match=refusal):
        run(HONEST, TESTS, "", 1.0, "bubblewrap")
    if "namespaces" in BACKENDS:
        find_backend.cache_clear()
        assert find_backend() == "namespaces"
        find_backend.cache_clear()


def test_a_bubblewrap_that_hangs_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\nexec sleep 60\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sandbox, "run", lambda *job: "passed" if "namespaces" in job else "hung")
    find_backend.cache_clear()
    started = time.monotonic()
    assert find_backend() == "namespaces"
    assert time.monotonic() - started < 10
    find_backend.cache_clear()


def test_a_relative_place_of_bubblewrap_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    assert sandbox.command("bubblewrap")[0] == str(tmp_path / "bwrap")


def test_root_starts_bubblewrap_as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    users: list[object] = []

    def refuse(line: list[str], *, user: int | None, **others: object) -> None:
        users.append(user)
        raise OSError("refused")

    monkeypatch.setattr(sandbox.subprocess, "Popen", refuse)
    calls: list[tuple[int, Backend]]
    calls = [(0, "bubblewrap"), (0, "namespaces"), (1000, "bubblewrap")]
    for euid, backend in calls:
        monkeypatch.setattr(sandbox.os, "geteuid", lambda euid=euid: euid)
        with pytest.raises(SandboxError, match="refused"):
            run(HONEST, TESTS, "", 1.0, backend)
    assert users == [65534, None, None]


def test_a_watcher_that_dies_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    dying = """read -r job; token=${job##*\'"token": "\'}; echo ${token%%\'"\'*}; kill -9 $$"""
    monkeypatch.setattr(sandbox, "command", lambda backend: ["/bin/sh", "-c", dying])
    assert run(HONEST, TESTS, "", 1.0, "none") == "no_verdict"
