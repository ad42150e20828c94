"""Processes that share work: those of a launcher, and a pool of this machine's own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue

import torch


def launched() -> tuple[int, int]:
    """Number of this process, and how many there are, as `torchrun` and its like say it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; each has its share of threads and GPUs.

    They end with their parent, and at once where it stops for an error or an interrupt: what they
    were at is written so that it can be resumed.
    """
    context = get_context("spawn")
    alive, lifeline = context.Pipe(duplex=False)
    numbers = context.SimpleQueue()
    for number in range(num_workers):
        numbers.put(number)
    threads = max(1, torch.get_num_threads() // num_workers)
    share = (numbers, threads, torch.cuda.device_count(), alive)
    executor = ProcessPoolExecutor(num_workers, context, _start, share)
    try:
        with lifeline:
            yield executor
            executor.shutdown()
    finally:
        executor.shutdown(cancel_futures=True)
        alive.close()


def _start(numbers: SimpleQueue[int], threads: int, num_devices: int, alive: Connection) -> None:
    """Give a worker its share of the machine, and end it when nobody holds `alive`'s other end."""
    # A terminal interrupts workers as well, and what they would print is not for the user.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number = numbers.get()
    torch.set_num_threads(threads)
    if num_devices:
        torch.cuda.set_device(number % num_devices)

    def watch() -> None:
        with suppress(EOFError):
            alive.recv()
        # A worker that went on would work beside the one of a resumed run.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
