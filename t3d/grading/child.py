"""The process that runs a program and its tests; the program may forge anything that it sends.

Runs inside the sandbox, so it imports the standard library only.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import sys
import types

from t3d.grading.values import Opaque, encode, receive, send

TYPE_CHECKING = False  # Importing typing costs as much as starting the interpreter.
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2
_ENOSYS, _EAFNOSUPPORT = 38, 97
# add_key, request_key, keyctl, memfd_create, memfd_secret, shmget, msgget, semget, mq_open, bpf,
# perf_event_open, userfaultfd, io_uring_setup, preadv2, cachestat, setpriority; then those of
# another process: prlimit64, sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr;
# then socket.
_SYSTEM_CALLS = {
    "x86_64": (
        0xC000003E,
        (248, 249, 250, 319, 447, 29, 68, 64, 240, 321, 298, 323, 425, 327, 451, 141),
        (302, 142, 144, 203, 314),
        41,
    ),
    "aarch64": (
        0xC00000B7,
        (217, 218, 219, 279, 447, 194, 186, 190, 180, 280, 241, 282, 425, 286, 451, 140),
        (261, 118, 119, 122, 274),
        198,
    ),
}
_X32 = 0x40000000
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: what a namespace covers.


def filter_system_calls() -> None:
    """Forbid system calls, for good, that reach beyond this process and that no namespace covers.

    These make kernel keys, which outlive a process; memory that no limit counts; or look into the
    page cache, which programs share. Limits and priority of another process cannot be changed
    either, since the watcher must get its share of processor time. Nothing happens on a processor
    other than x86-64 and ARM64.

    Raises:
        OSError: if the kernel refuses a filter.
    """
    if platform.machine() not in _SYSTEM_CALLS:
        return
    architecture, denied, own_only, socket_call = _SYSTEM_CALLS[platform.machine()]
    # linux/bpf_common.h, linux/seccomp.h: (code, jump if true, jump if false, value).
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, deny, no_family = 0x7FFF0000, 0x00050000 | _ENOSYS, 0x00050000 | _EAFNOSUPPORT
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, deny)]
    program += [(load, 0, 0, 0), (at_least, 0, 1, _X32), (answer, 0, 0, deny)]
    for number in denied:
        program += [(equal, 0, 1, number), (answer, 0, 0, deny)]
    for number in own_only:  # Their first argument is a process, 0 for this one.
        program += [(equal, 0, 4, number), (load, 0, 0, 16), (equal, 0, 1, 0)]
        program += [(answer, 0, 0, allow), (answer, 0, 0, deny)]
    program += [(equal, 1, 0, socket_call), (answer, 0, 0, allow), (load, 0, 0, 16)]
    for family in _FAMILIES:
        program += [(equal, 0, 1, family), (answer, 0, 0, allow)]
    program += [(answer, 0, 0, no_family)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    whole = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no = ctypes.c_ulong(0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), no, no, no)
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), whole, no, no) != 0:
        raise OSError(ctypes.get_errno(), "prctl: no filter of system calls")


def run_program(channel: socket.socket) -> NoReturn:
    """Run the program and its tests; say how that went, and wait for the end."""
    job = receive(channel)
    for name, (soft, hard) in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (soft, hard))
    if sys.platform == "linux":
        filter_system_calls()
    reason = "no_verdict"
    try:
        try:
            code = compile(job["program"], "<program>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            reason = "syntax"
        else:
            message = _run(code, channel, job["stdin"])
            send(channel, message)
            signal.pause()  # The watcher sees processes that are left running, and kills them.
    except MemoryError:
        reason = "memory"
    except AssertionError:
        reason = "assertion"
    except BaseException as error:
        reason = f"error: {type(error).__name__}"
    send(channel, ["failed", reason])
    while True:  # If this process ended, that would be taken for the program's doing.
        signal.pause()


def _run(code: types.CodeType, channel: socket.socket, stdin: str | None) -> list[str]:
    # Not `__main__` where tests call functions: the program's main part is not tested then.
    module = types.ModuleType("program" if stdin is None else "__main__")
    sys.modules[module.__name__] = module
    namespace, run, library = vars(module), exec, dict(builtins.__dict__)
    if stdin is None:
        run(code, namespace)
    else:
        namespace["stdout"] = _run_main(code, namespace, stdin)
    send(channel, ["ready"])
    job = receive(channel)
    builtins.__dict__.update(library)  # Undo a program's changes before the tests run.
    namespace["__builtins__"] = builtins

    def ask(check: int, *values: Any, plain: bool = False) -> bool:
        """Ask the judge whether its part of an assertion holds for these values."""
        sent = []
        for value in values:
            try:
                sent.append(encode(value))
            except Opaque:
                sent.append(["opaque"])
        if plain and sent == [["opaque"]] * 2:  # Objects that only the program understands.
            sent = [True, bool(values[0] == values[1])]
        send(channel, ["ask", check, sent])
        return receive(channel)

    namespace[job["ask"]] = ask
    for snippet in job["tests"]:
        run(compile(snippet, "<test>", "exec", dont_inherit=True), namespace)
    _finish()
    return ["passed", job["nonce"]]


def _run_main(code: types.CodeType, namespace: dict[str, Any], stdin: str) -> str:
    """Run a main program to its end, or to `sys.exit`; what it wrote to stdout."""
    for descriptor, content in enumerate((stdin.encode(), b"")):
        with open("stream", "x+b") as file:
            os.unlink("stream")
            file.write(content)
            file.seek(0)
            os.dup2(file.fileno(), descriptor)
    read = input
    namespace["input"] = lambda prompt="": read()  # As for the authors, a prompt is no output.
    with contextlib.suppress(SystemExit):
        exec(code, namespace)
    _finish()
    sys.stdout.flush()
    return os.pread(1, os.fstat(1).st_size, 0).decode(errors="replace")


def _finish() -> None:
    """Do what an interpreter does as it ends: wait for threads, then end pools."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    if "multiprocessing.resource_tracker" in sys.modules:
        sys.modules["multiprocessing.resource_tracker"]._resource_tracker._stop()
