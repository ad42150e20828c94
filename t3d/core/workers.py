"""Processes that share work: started by a launcher such as `torchrun`, or a local worker pool."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Environment variables by which a process of a launcher knows the others."""
_counters = itertools.count()
"""Numbers of the calls of `drawn`."""
_messages: SimpleQueue[Any] | None = None
"""Queue from a worker to its parent; None in a process that is no worker."""


def launched() -> tuple[int, int]:
    """Number of this process, and how many there are, as `torchrun` and its like say it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def alone() -> Iterator[None]:
    """Context in which this process is none of a launcher's."""
    held = {name: os.environ.pop(name) for name in _LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def check_workers(num_workers: int) -> None:
    """Check that work is shared in one way only.

    Raises:
        ValueError: for workers of the processes of a launcher.
    """
    if num_workers > 1 and launched()[1] > 1:
        raise ValueError("num_workers: the launcher's processes share the work; set it to 1")


def drawn() -> Iterator[int]:
    """Numbers from 0 up, each of which only one of the launcher's processes gets.

    All processes must call it equally often.
    """
    from torch.distributed.rendezvous import rendezvous

    # The store in which the processes find each other; its additions are atomic.
    store, _, _ = next(rendezvous("env://"))
    name = f"t3d/{next(_counters)}"
    while True:
        yield store.add(name, 1) - 1


def own_device() -> torch.device:
    """The GPU that belongs to this process among those of the launcher; the CPU without GPUs."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is not None:
        torch.cuda.set_device(int(local_rank))
    return torch.device("cuda", torch.cuda.current_device())


def is_worker() -> bool:
    """Whether this process is one of a pool."""
    return _messages is not None


def tell(message: object) -> None:
    """Send a message from a worker to its parent."""
    assert _messages is not None
    _messages.put(message)


@contextmanager
def pool(num_workers: int, hear: Callable[[Any], None]) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; each has its share of threads and GPUs.

    They end with their parent, and at once where it stops for an error or an interrupt. Nothing is
    lost by that: all their work is written so that it can be resumed. A worker is no process of
    the launcher that started this one, so it rolls out and trains by itself.

    Args:
        hear: called in a separate thread with every message that a worker sends with `tell`.
    """
    import torch

    # What this process only keeps for later allocations is its workers' now.
    torch.cuda.empty_cache()
    context = get_context("spawn")
    alive, lifeline = context.Pipe(duplex=False)
    numbers, messages = context.SimpleQueue(), context.SimpleQueue()
    first = int(os.environ.get("LOCAL_RANK", 0))
    for number in range(num_workers):
        numbers.put(first + number)
    threads = max(1, torch.get_num_threads() // num_workers)
    level = logging.root.manager.disable
    share = (numbers, messages, threads, torch.cuda.device_count(), level, alive)
    executor = ProcessPoolExecutor(num_workers, context, _start, share)
    is_over = threading.Event()

    def listen() -> None:
        last = False
        while not last:
            last = is_over.wait(0.1)
            while not messages.empty():
                hear(messages.get())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        with lifeline:
            yield executor
            executor.shutdown()
    finally:
        executor.shutdown(cancel_futures=True)
        alive.close()
        is_over.set()
        # A worker that was killed may have sent half a message.
        listener.join(timeout=1.0)


def _start(
    numbers: SimpleQueue[int],
    messages: SimpleQueue[Any],
    threads: int,
    num_devices: int,
    level: int,
    alive: Connection,
) -> None:
    """Give a worker its share of the machine, and end it when its parent is gone.

    The parent holds the other end of the pipe `alive`, which the system closes with it.
    """
    # A terminal interrupts workers as well; their tracebacks would only confuse the user.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number = numbers.get()
    for name in _LAUNCHED:
        os.environ.pop(name, None)
    if num_devices:
        # It sees its own GPU alone, since training takes all that a process sees.
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = named.split(",") if named else [*map(str, range(num_devices))]
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % num_devices]

    import torch

    global _messages
    _messages = messages
    # The parent's level of logging holds in its workers, too.
    logging.disable(level)
    torch.set_num_threads(threads)

    def watch() -> None:
        with suppress(EOFError):
            alive.recv()
        # A worker that outlived its parent would do the same work as one of a resumed run.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
