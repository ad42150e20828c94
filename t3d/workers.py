"""Processes that share work: those of a launcher, and a pool of this machine's own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue

import torch


def launched() -> tuple[int, int]:
    """Number of this process, and how many there are, as `torchrun` and its like say it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which end with their parent; each has its share of threads and GPUs."""
    context = get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(num_workers):
        numbers.put(number)
    threads = max(1, torch.get_num_threads() // num_workers)
    executor = ProcessPoolExecutor(
        num_workers, context, _start, (numbers, threads, torch.cuda.device_count(), os.getpid())
    )
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _start(numbers: SimpleQueue[int], threads: int, num_devices: int, parent: int) -> None:
    """Give a worker its share of the machine, and end it with its parent."""
    number = numbers.get()
    torch.set_num_threads(threads)
    if num_devices:
        torch.cuda.set_device(number % num_devices)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        # A worker that went on would work beside the one of a resumed run.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
