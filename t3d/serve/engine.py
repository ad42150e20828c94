"""One thread that owns models and decoders; requests come to it by a queue, events go back."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from queue import SimpleQueue
from time import monotonic
from traceback import format_exception

from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Event, Request
from t3d.serve.log import log

Report = tuple[int, Event | Exception]
"""Number of a job within its answer, and what became of it."""
_REMEMBERED = 64
"""Number of finished jobs over which the pace is measured."""


class Stopped(Exception):
    """The engine has stopped, and decodes nothing more."""


class QueueFull(Exception):
    """There is no place for a request now.

    Attributes:
        seconds: when to come back.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; come back in {seconds} s")
        self.seconds = seconds


@dataclass(eq=False)
class Job:
    """One response that is to be decoded."""

    model: str
    request: Request
    reports: asyncio.Queue[Report]
    """Where its events go, until one has a completion, or is an error."""
    index: int
    id: int = -1
    """The decoder's id of it, once it is submitted."""


class Engine:
    """Runs the decoders in turns, a pass of each, as long as they have something to do.

    All methods but the thread's own are called by the event loop.

    Args:
        decoders: the models' decoders by name.
        capacity: jobs of one model at most, those that run and those that wait.
    """

    def __init__(self, decoders: Mapping[str, BlockDecoder], capacity: int) -> None:
        self._decoders = dict(decoders)
        self._capacity = capacity
        self._open: dict[str, set[Job]] = {name: set() for name in decoders}
        self._ended: dict[str, deque[float]] = {
            name: deque(maxlen=_REMEMBERED) for name in decoders
        }
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._running: dict[str, dict[int, Job]] = {name: {} for name in decoders}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._is_closing = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def num_waiting(self, model: str) -> int:
        return self._decoders[model].num_waiting

    def num_running(self, model: str) -> int:
        decoder = self._decoders[model]
        return max(0, decoder.num_unfinished - decoder.num_waiting)

    def submit(self, jobs: list[Job]) -> None:
        """Queue the jobs of one answer, which are of one model.

        Raises:
            QueueFull: if there is no place for all of them.
            Stopped: if the engine runs no longer.
        """
        if not self.is_alive:
            raise Stopped("the server is stopping")
        model = jobs[0].model
        opened = self._open[model]
        if len(opened) + len(jobs) > self._capacity:
            raise QueueFull(self._pause(model, len(jobs)))
        opened.update(jobs)
        self._calls.put(partial(self._submit, jobs))

    def cancel(self, jobs: list[Job]) -> None:
        """Free the slots of those jobs that have not ended."""
        left = [job for job in jobs if job in self._open[job.model]]
        for job in left:
            self._open[job.model].discard(job)
        if left:
            self._calls.put(partial(self._cancel, left))

    def close(self) -> None:
        """Stop after the pass that runs; jobs that have not ended get the error `Stopped`."""

        def stop() -> None:
            self._is_closing = True

        self._calls.put(stop)
        self._thread.join()

    def _pause(self, model: str, num: int) -> int:
        """Seconds until so many jobs will have ended, at the pace of the last ones."""
        times = self._ended[model]
        if len(times) < 2:
            return 1
        pace = (monotonic() - times[0]) / len(times)
        return min(max(1, ceil(num * pace)), 60)

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            while not self._is_closing:
                if not any(decoder.num_unfinished for decoder in self._decoders.values()):
                    self._calls.get()()
                while not self._calls.empty():
                    self._calls.get()()
                for model, decoder in self._decoders.items():
                    if decoder.num_unfinished:
                        self._step(model, decoder)
        finally:
            self._loop.call_soon_threadsafe(self._abandon)

    def _submit(self, jobs: list[Job]) -> None:
        for job in jobs:
            try:
                job.id = self._decoders[job.model].submit(job.request)
            except ValueError as error:
                self._tell([(job, error)])
            else:
                self._running[job.model][job.id] = job

    def _cancel(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self._running[job.model].pop(job.id, None) is not None:
                self._decoders[job.model].cancel(job.id)

    def _step(self, model: str, decoder: BlockDecoder) -> None:
        running = self._running[model]
        try:
            events = decoder.step()
        # One request may ask for more memory than there is; the others must go on.
        except Exception as error:
            log(model=model, error="".join(format_exception(error)))
            decoder.reset()
            failed, self._running[model] = list(running.values()), {}
            self._tell([(job, error) for job in failed])
            return
        told = [(running[event.id], event) for event in events]
        for event in events:
            if event.completion is not None:
                del running[event.id]
        if told:
            self._tell(told)

    def _tell(self, told: Sequence[tuple[Job, Event | Exception]]) -> None:
        self._loop.call_soon_threadsafe(self._receive, told)

    # This again runs in the event loop.

    def _receive(self, told: Sequence[tuple[Job, Event | Exception]]) -> None:
        for job, event in told:
            if job not in self._open[job.model]:
                continue
            if isinstance(event, Exception) or event.completion is not None:
                self._open[job.model].discard(job)
                self._ended[job.model].append(monotonic())
            job.reports.put_nowait((job.index, event))

    def _abandon(self) -> None:
        jobs = [job for opened in self._open.values() for job in opened]
        self._receive([(job, Stopped("the server stopped before the end")) for job in jobs])
