"""Run one program and its tests in a sandboxed, fresh interpreter: see docs/sandbox.md.

A backend is a command that starts the interpreter in a sandbox. `runner.py` watches inside. This
side sends the job, trusts no output without the run's token, and has a last time limit.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal

from t3d.grading.expected import split_tests
from t3d.grading.namespaces import ENVIRONMENT, NOBODY

Backend = Literal["bubblewrap", "namespaces", "none"]

CPU_FACTOR = 10.0
"""Processor seconds for each second of a limit. Benchmarks state theirs for fast, idle machines,
and the slowest reference program, mbpp/123, needs three to seven for its one."""
IDLE_FACTOR, IDLE_SECONDS = 2.0, 1.0
"""Seconds of sleep for each second of a limit, and for all."""
MEMORY_BYTES = 1 << 30
"""Address space of each process, and memory of all processes of a program together."""
FILE_BYTES = 16 << 20
"""Size of each file, of /tmp, and of /dev/shm."""
MAX_PROCESSES = 32
"""Processes and threads of a program."""
MAX_OPEN_FILES = 64
WALL_FACTOR, WALL_SECONDS = 40.0, 60.0
"""Seconds by the clock for each second of a limit, and for all; the last resort, far away,
so that a busy machine makes no program wrong."""

_HERE = Path(__file__).parent
_INSIDE = ("values", "child", "judge", "runner")
"""Modules that run inside, each of which imports those before it."""
_IMPORT_INSIDE = """
import sys, types
for name, source in sources.items():
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name, "exec"), vars(module))
module.main()
"""
_ADDR_NO_RANDOMIZE = 0x0040000
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/nix/store")


class SandboxError(RuntimeError):
    """The sandbox itself failed, which says nothing about the program."""


def read_only_paths() -> list[str]:
    """Paths that a program may read: this interpreter and the system's libraries."""
    paths = [path for path in _SYSTEM if os.path.exists(path)]
    for prefix in (sys.base_prefix, sys.base_exec_prefix):
        real = os.path.realpath(prefix)
        if not any(Path(real).is_relative_to(path) for path in paths):
            paths.append(real)
    return paths


def interpreter() -> list[str]:
    """The command that runs the watcher, the same in every backend.

    It reads its environment, and with it the one hash seed of all programs.
    """
    sources = {f"t3d.grading.{name}": (_HERE / f"{name}.py").read_text() for name in _INSIDE}
    program = os.path.realpath(sys.executable)
    return [program, "-P", "-s", "-S", "-B", "-c", f"sources = {sources!r}{_IMPORT_INSIDE}"]


def command(backend: Backend) -> list[str]:
    """The command line of a run."""
    if backend == "none":
        return interpreter()
    if backend == "namespaces":
        start = [sys.executable, "-I", "-S", "-B", str(_HERE / "namespaces.py"), str(FILE_BYTES)]
        return [*start, *read_only_paths(), "--", *interpreter()]
    options = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    options += ["--as-pid-1"]  # No process inside can stop or kill pid 1.
    options += ["--cap-drop", "ALL", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        options += ["--setenv", name, value]
    for path in read_only_paths():
        options += ["--ro-bind", path, path]
    options += ["--dev", "/dev", "--proc", "/proc"]
    for path in ("/tmp", "/dev/shm"):
        options += ["--perms", "1777", "--size", str(FILE_BYTES), "--tmpfs", path]
    options += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    return [_bubblewrap() or "bwrap", *options, "--", *interpreter()]


def _bubblewrap() -> str | None:
    """The path of bubblewrap, which is started with another PATH than the caller's."""
    found = shutil.which("bwrap")
    return found and os.path.abspath(found)


@cache
def find_backend() -> Backend:
    """The first backend in which a trivial program passes; the search runs once a process.

    Raises:
        ValueError: if there is none, with the remedy.
    """
    refusals = []
    if sys.platform == "linux":
        backends: list[Backend] = ["namespaces"]
        if _bubblewrap():
            backends.insert(0, "bubblewrap")
        for backend in backends:
            try:
                if backend == "bubblewrap":
                    # A process that hangs would do so until the time limit.
                    subprocess.run(
                        [str(_bubblewrap()), "--version"],
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        timeout=1,
                    )
                reason = run("x = 1", ["assert x == 1"], "", 10.0, backend)
            except (SandboxError, OSError, subprocess.TimeoutExpired) as error:
                reason = str(error)
            if reason == "passed":
                return backend
            refusals.append(f"{backend}: {reason}")
    raise ValueError(
        f"programs cannot be run in a sandbox here ({'; '.join(refusals) or 'Linux only'}); "
        "install bubblewrap, allow unprivileged user namespaces, or pass unsafe_exec=True "
        "(--unsafe-exec) where a program may harm the machine"
    )


def run(
    program: str,
    tests: Sequence[str],
    test_setup: str,
    time_limit_s: float,
    backend: Backend,
    stdin: str | None = None,
) -> str:
    """The reason of the verdict; "passed" is a pass.

    Args:
        stdin: what a main program reads; tests find what it wrote in `stdout`. None for a module.

    Raises:
        SandboxError: if the sandbox cannot be set up.
    """
    token = secrets.token_hex(16)
    job = _job(program, tests, test_setup, time_limit_s, backend)
    job |= {"token": token, "stdin": stdin}
    # Real sandboxes have a /tmp of their own; without one, the program gets this folder.
    place = tempfile.TemporaryDirectory(prefix="t3d-program-") if backend == "none" else None
    with place or nullcontext("/") as directory:
        # bubblewrap maps its user alone, and no limit binds how many processes root has.
        as_nobody = backend == "bubblewrap" and os.geteuid() == 0
        process = _start(command(backend), directory, NOBODY if as_nobody else None)
        limit = job["wall_limit_s"] + WALL_SECONDS
        try:
            stdout, stderr = process.communicate(json.dumps(job).encode(), limit)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            if process.returncode is None:  # The end of the namespace's pid 1 ends all others.
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    began, _, reason = stdout.decode(errors="replace").strip().partition("\n")
    if began == token:  # If the watcher began but gave no verdict, the program caused that.
        return reason or "no_verdict"
    if process.returncode:
        told = stderr.decode(errors="replace").strip()
        raise SandboxError(told or f"exit status {process.returncode}")
    return "no_verdict"


def _start(line: Sequence[str], directory: str, user: int | None) -> subprocess.Popen[bytes]:
    """Start a command without address randomisation, since addresses order some sets.

    Raises:
        SandboxError: if it cannot be started.
    """
    personality = ctypes.CDLL(None).personality if sys.platform == "linux" else lambda number: 0
    before = personality(0xFFFFFFFF)  # Read this thread's; the new process inherits it.
    personality(before | _ADDR_NO_RANDOMIZE)
    try:
        return subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd=directory,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(str(error)) from None
    finally:
        personality(before)


def _job(
    program: str, tests: Sequence[str], test_setup: str, time_limit_s: float, backend: Backend
) -> dict[str, Any]:
    ask = f"_ask_{secrets.token_hex(8)}"
    split = split_tests([test_setup, *tests], ask)
    cpu_limit_s = CPU_FACTOR * time_limit_s
    cpu_seconds = math.ceil(cpu_limit_s) + 1  # The judge's clock is finer, and first.
    limits = {
        "RLIMIT_CPU": (cpu_seconds, cpu_seconds + 1),
        "RLIMIT_FSIZE": (FILE_BYTES, FILE_BYTES),
        "RLIMIT_NOFILE": (MAX_OPEN_FILES, MAX_OPEN_FILES),
        "RLIMIT_CORE": (0, 0),
    }
    if sys.platform == "linux":
        limits["RLIMIT_AS"] = (MEMORY_BYTES, MEMORY_BYTES)
    if backend != "none":  # Without a sandbox, all processes of the user would count.
        limits["RLIMIT_NPROC"] = (MAX_PROCESSES, MAX_PROCESSES)
    return {
        "program": program,
        "tests": split.snippets,
        "ask": ask,
        "checks": [{"template": c.template, "required": c.required} for c in split.checks],
        "limits": limits,
        "cpu_limit_s": cpu_limit_s,
        "idle_limit_s": IDLE_FACTOR * time_limit_s + IDLE_SECONDS,
        "wall_limit_s": WALL_FACTOR * time_limit_s + WALL_SECONDS,
        "max_processes": MAX_PROCESSES,
        "memory_bytes": MEMORY_BYTES,
        "isolated": backend != "none",
    }
