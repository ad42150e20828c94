r"""Processes that compare answers with math-verify, each pair under hard limits.

A worker is this file run as a script: it imports neither t3d nor the caller's main module.
Its time limit is a timer whose signal has the default action, so the kernel ends the process even
in the middle of a long operation in C, and even where the parent is gone.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import wait
from typing import Literal, cast

TIME_LIMIT = 5.0
"""Seconds of processor time that a pair may take; a busy machine makes no answer wrong."""
WALL_FACTOR = 6.0
"""Factor by which a pair may last longer by the clock than by its processor time."""
START_LIMIT = 120.0
"""Seconds by the clock in which a worker must have imported math-verify."""
MEMORY_LIMIT = 2 << 30
"""Bytes of address space of a worker; the system enforces it on Linux only."""

Outcome = Literal["equal", "different", "timeout", "died"]
_OUTCOMES: dict[bytes, Outcome] = {b"1": "equal", b"0": "different"}
_TIMERS = {signal.ITIMER_PROF: signal.SIGPROF, signal.ITIMER_REAL: signal.SIGALRM}


class _Worker:
    """A worker process and the number of its current pair, which is None until it has started."""

    def __init__(self) -> None:
        self.pair: int | None = None
        self.socket, theirs = socket.socketpair()
        with theirs:
            # A session of its own: an interrupt from the keyboard is the parent's to handle.
            # One hash seed: the order of a set may decide what sympy finds out.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", __file__, str(TIME_LIMIT)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={**os.environ, "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )

    def receive(self) -> bytes:
        """Receive one byte; it is empty where the process has ended."""
        try:
            return self.socket.recv(1)
        except ConnectionError:
            return b""

    def send(self, number: int, pair: tuple[str, str]) -> None:
        self.pair = number
        with suppress(ConnectionError):  # The process has ended; `receive` will notice that.
            self.socket.sendall(json.dumps(pair).encode() + b"\n")

    def join(self) -> Outcome:
        """Wait for the end of the process, and return what it means for its pair."""
        self.socket.close()
        ended_by = -self._process.wait()
        return "timeout" if ended_by in _TIMERS.values() else "died"

    def kill(self) -> None:
        self._process.kill()
        self.join()


def compare(pairs: Sequence[tuple[str, str]], num_workers: int) -> list[Outcome]:
    """Whether math-verify takes each (answer, gold) for equal, in the order of `pairs`.

    A worker that ends because of a pair is replaced; the outcome is `timeout` if it ran out of
    time, else `died`.

    Raises:
        ValueError: if math-verify is not installed.
        RuntimeError: if a worker ends before its first pair.
    """
    if find_spec("math_verify") is None:
        raise ValueError("grading mathematics needs math-verify; run `pip install math-verify`")
    outcomes: list[Outcome | None] = [None] * len(pairs)
    todo = deque(enumerate(pairs))
    workers: list[_Worker] = []
    try:
        for _ in range(min(num_workers, len(pairs))):
            workers.append(_Worker())
        while None in outcomes:
            ready = wait([worker.socket for worker in workers])
            for worker in [worker for worker in workers if worker.socket in ready]:
                reply = worker.receive()
                if not reply:
                    if worker.pair is None:
                        raise RuntimeError("a process that grades ended as it started")
                    workers.remove(worker)
                    outcomes[worker.pair] = worker.join()
                    if todo:
                        workers.append(_Worker())
                    continue
                if worker.pair is not None:
                    outcomes[worker.pair] = _OUTCOMES[reply]
                if todo:
                    worker.send(*todo.popleft())
    finally:
        for worker in workers:
            worker.kill()
    return cast("list[Outcome]", outcomes)


def _set_timers(seconds: float) -> None:
    """Let the kernel end this process after so many processor seconds; 0 removes the limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * seconds)


def _serve(time_limit: float) -> None:
    """The worker's loop: send a byte when ready, then one for each pair read from the socket."""
    for number in _TIMERS.values():
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, START_LIMIT)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))

    from math_verify import parse, verify
    from sympy.core.random import seed

    def equal(answer: str, gold: str) -> bool:
        # math-verify's own limits are off: they cannot end an operation in C.
        parsed, wanted = (
            parse(f"\\boxed{{{side}}}", parsing_timeout=cast(int, None)) for side in (answer, gold)
        )
        return verify(wanted, parsed, timeout_seconds=None)

    logging.disable()
    equal("1", "1")  # Builds the parser, whose time should not count for the first pair.
    # Verdicts go through a copy of stdin's socket, so that no library's print can forge one.
    with socket.socket(fileno=os.dup(0)) as replies, open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
        replies.sendall(b"r")
        for line in sys.stdin:
            pair = json.loads(line)
            seed(0)  # sympy compares at random points.
            _set_timers(time_limit)
            try:
                verdict = equal(*pair)
            except Exception:  # An answer may cause any error, memory and recursion included.
                verdict = False
            _set_timers(0.0)
            replies.sendall(b"1" if verdict else b"0")


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
