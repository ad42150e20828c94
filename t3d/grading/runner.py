"""The processes inside the sandbox: a child that runs the program, a judge, and this watcher.

`sandbox.py` starts it in a fresh interpreter, so it imports the standard library only. The child
is forked before anything is read: neither the run's token nor an expected value was ever in its
memory, and it has none of the others' descriptors. Child and judge speak frames of JSON:

    judge -> child   the program and its limits
    child -> judge   ["ready"] once the program's body ran
    judge -> child   the tests, their expected values cut out (`expected.py`), and a nonce
    child -> judge   ["ask", check, values], answered by true or false, as often as tests ask
    child -> judge   ["passed", nonce], or ["failed", reason] at any time

The judge tells the watcher the reason. The watcher reads nothing of the child, so no message
keeps it from holding child and judge to their limits. It prints the token once it knows what to
do, then the reason, and its end is the end of the sandbox.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import select
import signal
import socket
import sys
import time

from t3d.grading.child import run_program
from t3d.grading.judge import Judge

TYPE_CHECKING = False  # Importing typing costs as much as starting the interpreter.
if TYPE_CHECKING:
    from typing import Any, NoReturn

POLL_SECONDS = 0.02
LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_JOIN_SESSION_KEYRING = 1
_MAX_FILES = 4096
"""Largest number of files in /tmp, and in /dev/shm: the kernel memory of a file is counted for no
process."""
_TICK = os.sysconf("SC_CLK_TCK")


class Watcher:
    """Holds a child and its judge to their limits until there is a verdict."""

    def __init__(self, job: dict[str, Any], child: int, judge: int, verdict: int) -> None:
        self.job = job
        self.child = child
        self.judge = judge
        self.verdict = verdict
        """File descriptor from which the judge's reason is read."""
        self.ending: str | None = None
        """Outcome where the child ended without a verdict."""

    def watch(self) -> str:
        """Wait until the judge has a verdict, or a process died or broke a limit; the reason."""
        job, poll = self.job, select.poll()
        poll.register(self.verdict, select.POLLIN)
        start = time.monotonic()
        while True:
            if poll.poll(POLL_SECONDS * 1000):
                return self._judged()
            self._reap()
            if self.ending:
                return self.ending
            elapsed = time.monotonic() - start
            if elapsed > job["wall_limit_s"] or self._idle(elapsed) > job["idle_limit_s"]:
                return "timeout"
            if exceeded := self._exceeded():
                return exceeded

    def _judged(self) -> str:
        reason = os.read(self.verdict, 256).decode()
        others = set(self._pids()) - {self.child, self.judge}
        if reason == "passed" and any(_stat(pid)[:1] not in ([], [b"Z"]) for pid in others):
            return "processes"  # A process is left running, or a fork of the child said "passed".
        if not reason:  # The child ended or closed the channel, or the judge died.
            self._reap(wait_s=1.0)
        return reason or self.ending or "no_verdict"

    def _reap(self, wait_s: float = 0.0) -> None:
        """Collect processes that ended, orphans too; waits up to `wait_s` seconds for the child."""
        deadline = time.monotonic() + wait_s
        while self.ending is None:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == self.child:
                number = -os.waitstatus_to_exitcode(status)
                self.ending = (
                    f"killed: {signal.Signals(number).name}" if number > 0 else "no_verdict"
                )
                if number == signal.SIGXCPU:
                    self.ending = "timeout"
            elif pid == 0:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.001)

    def _idle(self, elapsed: float) -> float:
        """Seconds in which neither the child's main thread nor the judge ran or wanted a core."""
        busy = 0
        try:
            for pid in (self.child, self.judge):
                with open(f"/proc/{pid}/schedstat") as file:
                    busy += sum(map(int, file.read().split()[:2]))
        except OSError:  # A process is gone, or the system has no such numbers.
            return 0.0
        return elapsed - busy * 1e-9

    def _pids(self) -> list[int]:
        """The program's processes and the judge, as far as they are known."""
        if not self.job["isolated"]:
            return [self.child, self.judge]
        # This process is the first of its namespace, so /proc shows no others.
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and pid != "1"]

    def _exceeded(self) -> str | None:
        """The limit that the processes exceed together, those that have ended included."""
        if not LINUX:
            return None
        pids, job = self._pids(), self.job
        if len(pids) > job["max_processes"]:
            return "processes"
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds, num_pages = ended.ru_utime + ended.ru_stime, 0
        for pid in pids:
            if fields := _stat(pid):
                # utime, stime, and those of children that it waited for; rss.
                cpu_seconds += sum(map(int, fields[11:15])) / _TICK
                num_pages += int(fields[21])
        if cpu_seconds > job["cpu_limit_s"]:
            return "timeout"
        if job["isolated"]:
            folders = map(os.statvfs, ("/tmp", "/dev/shm"))
            if any(folder.f_files - folder.f_ffree > _MAX_FILES for folder in folders):
                return "memory"
        if num_pages * resource.getpagesize() > job["memory_bytes"]:
            return "memory"
        return None


def _stat(pid: int) -> list[bytes]:
    """The fields of proc_pid_stat(5) from the state on; none of a process that has just ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _join_new_keyring() -> None:
    """Leave the session keyring of whoever started this, which all rows would share."""
    if LINUX and platform.machine() in _KEYCTL:
        number = ctypes.c_long(_KEYCTL[platform.machine()])
        # Where this call is forbidden, the child cannot use keys either.
        ctypes.CDLL(None).syscall(number, ctypes.c_long(_JOIN_SESSION_KEYRING), None)


def _be_child(channel: socket.socket) -> NoReturn:
    os.setpgid(0, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run_program(channel)


def _be_judge(job: dict[str, Any], channel: socket.socket, verdict: int) -> NoReturn:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if LINUX:
            resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"], job["memory_bytes"]))
        reason = Judge(job, channel).verdict()
    except (EOFError, ConnectionError):
        reason = ""
    except BaseException:  # The child sent something that is no message.
        reason = "no_verdict"
    os.write(verdict, reason.encode())
    os._exit(0)


def main() -> None:
    """Watch the program that stdin describes; print the token and the reason."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_DUMPABLE, 0)  # Hides descriptors and memory of the judge from the child.
    _join_new_keyring()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Pid 1 ignores signals that have no handler.
    sys.set_int_max_str_digits(0)  # Programs and tests may print integers of any length.
    judge_side, child_side = socket.socketpair()
    child = os.fork()
    if child == 0:
        judge_side.close()
        _be_child(child_side)
    child_side.close()
    job = json.loads(sys.stdin.buffer.read())
    print(job["token"], flush=True)
    verdict, judge_end = os.pipe()
    judge = os.fork()
    if judge == 0:
        _be_judge(job, judge_side, judge_end)
    judge_side.close()
    os.close(judge_end)
    reason = Watcher(job, child, judge, verdict).watch()
    for kill, process in ((os.killpg, child), (os.kill, judge)):
        with contextlib.suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)
    print(reason, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
