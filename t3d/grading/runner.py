"""What runs inside the sandbox: a judge, and its child that runs the program.

`sandbox.py` starts it as `python -I -S -c SOURCE`, so it imports the standard library only.
The child is forked before the judge reads anything: neither the run's token nor an expected
value was ever in its memory, and it has none of the judge's descriptors. The two speak frames of
JSON over a socket:

    judge -> child   the program and its limits; the clock starts
    child -> judge   ["ready"] once the program's body ran
    judge -> child   the tests, their expected values cut out (`expected.py`), and a nonce
    child -> judge   ["ask", check, values], answered by true or false, as often as tests ask
    child -> judge   ["passed", nonce], or ["failed", reason] at any time

The judge then prints the token and the reason, and its end is the end of the sandbox.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
import time
import types

TYPE_CHECKING = False  # Importing typing costs as much as starting the interpreter.
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_FRAME = 4 << 20
"""Bytes of one message of the child; more is no message."""
POLL_SECONDS = 0.02
LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def send(channel: socket.socket, message: Any) -> None:
    """One frame: four bytes of length, then JSON."""
    data = json.dumps(message).encode()
    channel.sendall(struct.pack("!I", len(data)) + data)


def receive(channel: socket.socket) -> Any:
    """The next frame; waits for it.

    Raises:
        EOFError: if the other side is gone.
    """

    def exactly(num: int) -> bytes:
        data = b""
        while len(data) < num:
            part = channel.recv(num - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    return json.loads(exactly(*struct.unpack("!I", exactly(4))))


# Values cross as plain data. A subclass crosses as its base, so its own `__eq__` has no say.


class Opaque(Exception):
    """A value that is not plain data."""


_VIEWS = (type({}.keys()), type({}.items()))


def encode(value: Any) -> Any:
    """Plain data as JSON: containers, bytes and numbers beyond JSON's become [tag, ...].

    Raises:
        Opaque: for any other value.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, complex):
        return ["complex", value.real, value.imag]
    if issubclass(kind, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if issubclass(kind, dict):
        return ["dict", *([encode(key), encode(item)] for key, item in dict.items(value))]
    if issubclass(kind, _VIEWS):
        return ["set", *map(encode, value)]
    for base in (list, tuple, set, frozenset):
        if issubclass(kind, base):
            return [base.__name__, *map(encode, base.__iter__(value))]
    if (kind.__module__, kind.__name__) in (("fractions", "Fraction"), ("decimal", "Decimal")):
        return [kind.__name__, str(value)]
    raise Opaque


def decode(data: Any) -> Any:
    """The inverse of `encode`."""
    if not isinstance(data, list):
        return data
    tag, *items = data
    match tag:
        case "complex":
            return complex(*items)
        case "bytes":
            return bytes.fromhex(items[0])
        case "dict":
            return {decode(key): decode(item) for key, item in items}
        case "list" | "tuple" | "set" | "frozenset":
            return getattr(builtins, tag)(map(decode, items))
        case "Fraction":
            from fractions import Fraction

            return Fraction(items[0])
        case "Decimal":
            from decimal import Decimal

            return Decimal(items[0])
        case "opaque":
            return object()  # Equals nothing, is not None, has no order.
    raise ValueError(tag)


# The child.


def run_program(channel: socket.socket) -> NoReturn:
    """Run the program and its tests; say how that went."""
    job = receive(channel)
    for name, (soft, hard) in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (soft, hard))
    reason = "no_verdict"
    try:
        try:
            code = compile(job["program"], "<program>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            reason = "syntax"
        else:
            _run(code, channel)
    except MemoryError:
        reason = "memory"
    except AssertionError:
        reason = "assertion"
    except BaseException as error:
        reason = f"error: {type(error).__name__}"
    send(channel, ["failed", reason])
    os._exit(0)


def _run(code: types.CodeType, channel: socket.socket) -> None:
    module = types.ModuleType("program")  # Not `__main__`: such a part of a program is no test.
    sys.modules["program"] = module
    namespace, run, library = vars(module), exec, dict(builtins.__dict__)
    run(code, namespace)
    send(channel, ["ready"])
    job = receive(channel)
    builtins.__dict__.update(library)  # Tests see the library's own functions.
    namespace["__builtins__"] = builtins

    def ask(check: int, *values: Any) -> bool:
        """Whether the judge's part of an assertion holds for these values."""
        sent = []
        for value in values:
            try:
                sent.append(encode(value))
            except Opaque:
                sent.append(["opaque"])
        if len(values) == 2 and sent == [["opaque"]] * 2:
            return values[0] == values[1]  # Two objects that only the program understands.
        send(channel, ["ask", check, sent])
        return receive(channel)

    namespace[job["ask"]] = ask
    for snippet in job["tests"]:
        run(compile(snippet, "<test>", "exec", dont_inherit=True), namespace)
    if "threading" in sys.modules:  # A process would wait for them too.
        threads = sys.modules["threading"]
        for thread in threads.enumerate():
            if thread is not threads.main_thread() and not thread.daemon:
                thread.join()
    send(channel, ["passed", job["nonce"]])
    signal.pause()  # What is left running now is seen, and killed.


# The judge.


class Judge:
    """Watches one child until there is a verdict."""

    def __init__(self, job: dict[str, Any], child: int, channel: socket.socket) -> None:
        self.job = job
        self.child = child
        self.channel = channel
        self.nonce: str | None = None
        """Sent with the tests."""
        self.held: set[int] = set()
        self.broken: set[int] = set()
        """Checks that were asked for, by answer."""
        self.buffer = b""
        self.ending: str | None = None
        """How the child ended without a verdict."""

    def watch(self) -> str:
        """The reason of the verdict, once the child said it, died or exceeded a limit."""
        job, poll = self.job, select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.register(1, 0)  # Reports an error once nobody waits for the verdict.
        self.channel.settimeout(job["wall_limit_s"])
        send(self.channel, {"program": job["program"], "limits": job["limits"]})
        start = time.monotonic()
        while True:
            events = dict(poll.poll(POLL_SECONDS * 1000))
            if 1 in events:
                return "no_verdict"
            self._reap()
            if self.channel.fileno() in events:
                part = self.channel.recv(1 << 16)
                self.buffer += part
                while message := self._next():
                    if reason := self._hear(message):
                        return reason
                if not part:  # The child ended, or closed its descriptors and goes on.
                    self._reap(wait_s=1.0)
                    return self.ending or "no_verdict"
            elif self.ending:
                return self.ending
            elapsed = time.monotonic() - start
            if elapsed > job["wall_limit_s"] or self._idle(elapsed) > job["idle_limit_s"]:
                return "timeout"
            if exceeded := self._exceeded():
                return exceeded

    def _next(self) -> list[Any] | None:
        """The first whole frame of what was received."""
        if len(self.buffer) < 4:
            return None
        (size,) = struct.unpack("!I", self.buffer[:4])
        if size > MAX_FRAME:
            raise ValueError(size)
        if len(self.buffer) < 4 + size:
            return None
        data, self.buffer = self.buffer[4 : 4 + size], self.buffer[4 + size :]
        message = json.loads(data)
        if not isinstance(message, list):
            raise ValueError(message)
        return message

    def _hear(self, message: list[Any]) -> str | None:
        """Answer a message of the child, or name the verdict."""
        checks = self.job["checks"]
        match message:
            case ["ready"] if self.nonce is None:
                self.nonce = os.urandom(16).hex()
                tests = {key: self.job[key] for key in ("tests", "ask")}
                send(self.channel, tests | {"nonce": self.nonce})
                return None
            case ["ask", int(check), list(values)] if self.nonce and 0 <= check < len(checks):
                holds = self._holds(checks[check]["template"], values)
                (self.held if holds else self.broken).add(check)
                send(self.channel, holds)
                return None
            case ["passed", str(nonce)] if nonce == self.nonce:
                required = {i for i, check in enumerate(checks) if check["required"]}
                if required & self.broken:
                    return "assertion"
                if set(self._pids()) - {self.child}:
                    return "processes"  # Or a copy of the child said so.
                return "passed" if required <= self.held else "no_verdict"
            case ["failed", str(reason)] if re.fullmatch(
                r"assertion|memory|syntax|error: [A-Za-z_]\w{0,63}", reason, re.ASCII
            ):
                return reason
        return "no_verdict"

    def _holds(self, template: str, values: list[Any]) -> bool:
        """Evaluate a check with the child's values in its holes `_0`, `_1`, ..."""
        holes = {f"_{i}": decode(value) for i, value in enumerate(values)}
        try:
            return bool(eval(template, dict(holes)))
        except Exception:  # An order or a difference that such values do not have.
            return False

    def _reap(self, wait_s: float = 0.0) -> None:
        """Collect the processes that ended, orphans too; waits so long for the child."""
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
        """Seconds that the child's main thread neither ran nor waited for a processor."""
        try:
            with open(f"/proc/{self.child}/schedstat") as file:
                ran, waited, _ = map(int, file.read().split())
                return elapsed - (ran + waited) * 1e-9
        except OSError:  # The child is gone, or the system does not say.
            return 0.0

    def _pids(self) -> list[int]:
        """The program's processes, as far as they are known."""
        if not self.job["isolated"]:
            return [self.child]
        own = (os.getpid(), 1)  # All others that this process sees are the program's.
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in own]

    def _exceeded(self) -> str | None:
        """The limit that the program's processes exceed together."""
        if not LINUX:
            return None
        pids, job = self._pids(), self.job
        if len(pids) > job["max_processes"]:
            return "processes"
        cpu_seconds, num_pages = 0.0, 0
        for pid in pids:
            try:
                cpu_seconds += time.clock_gettime(~pid << 3 | 2)  # Its CPU clock, clock_gettime(2).
                with open(f"/proc/{pid}/statm") as file:
                    num_pages += int(file.read().split()[1])
            except OSError:  # It has just ended.
                continue
        if cpu_seconds > job["cpu_limit_s"]:
            return "timeout"
        if num_pages * resource.getpagesize() > job["memory_bytes"]:
            return "memory"
        return None


def _prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def main() -> None:
    """Judge the one program that stdin names; print the token and the reason."""
    _prctl(_PR_SET_DUMPABLE, 0)  # No descriptor and no memory of the judge for its child.
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # As pid 1 it then takes no signal at all.
    sys.set_int_max_str_digits(0)  # Integers of any length cross as JSON.
    judge_side, child_side = socket.socketpair()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.close(null)
        judge_side.close()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        run_program(child_side)
    child_side.close()
    job = json.loads(sys.stdin.buffer.read())
    try:
        reason = Judge(job, child, judge_side).watch()
    except TimeoutError:
        reason = "timeout"
    except (OSError, ValueError, TypeError, RecursionError, MemoryError):
        reason = "no_verdict"  # What the child said is none of the messages.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    print(json.dumps({"token": job["token"], "reason": reason}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
