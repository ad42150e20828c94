"""Processes that share work: started by a launcher such as `torchrun`, or a local worker pool."""

from __future__ import annotations

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

_messages: SimpleQueue[Any] | None = None
"""Queue from a worker to its parent; None in a process that is no worker."""


def launched() -> tuple[int, int]:
    """Number of this process, and how many there are, as `torchrun` and its like say it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


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
    lost by that: all their work is written so that it can be resumed.

    Args:
        hear: called in a separate thread with every message that a worker sends with `tell`.
    """
    import torch

    context = get_context("spawn")
    alive, lifeline = context.Pipe(duplex=False)
    numbers, messages = context.SimpleQueue(), context.SimpleQueue()
    for number in range(num_workers):
        numbers.put(number)
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

    import torch

    global _messages
    _messages = messages
    # The parent's level of logging holds in its workers, too.
    logging.disable(level)
    number = numbers.get()
    torch.set_num_threads(threads)
    if num_devices:
        torch.cuda.set_device(number % num_devices)

    def watch() -> None:
        with suppress(EOFError):
            alive.recv()
        # A worker that outlived its parent would do the same work as one of a resumed run.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
