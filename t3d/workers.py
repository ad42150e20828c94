"""Processes that share this machine's cores and GPUs and end with their parent."""

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


@contextmanager
def pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; each has its share of the threads, and a GPU where there are any."""
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
