"""Progress of a command on stderr: its stages, the bar and metrics of each, the time left.

On a terminal the bars are drawn in place, elsewhere they are a few plain lines. A process has one
screen and therefore one display: `display` opens it for a whole command, `stage` names a part of
the command, and `bar` counts units of work. A bar without a display opens one for itself. Workers
send their bars to their parent, which shows them.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from t3d.core import workers

Plan = Mapping[str, Mapping[str, int]]
"""Amount of work in each stage, by the stage's name and the unit, such as 4000 prompts."""
_LINE_SECONDS, _TENTH_SECONDS = 30.0, 3.0
"""Seconds between two plain lines of progress; the shorter time applies when another tenth of the
work is done."""
_PACE_SECONDS = 60.0
"""Seconds of work after which a measured pace is trusted; a quarter of the work is enough, too."""
_TELL_SECONDS = 0.2
"""Seconds between two messages of a worker."""


@dataclass
class Stage:
    """State of one part of a command; workers send it to their parent."""

    names: list[str]
    """Name of the stage, then of the part of it, such as a round."""
    is_shown: bool = True
    is_over: bool = False
    unit: str = ""
    done: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    passed: Counter[str] = field(default_factory=Counter)
    """Amount of the stage's work that is done, by unit."""
    counted: Counter[str] = field(default_factory=Counter)
    """Amount of that work which this run did, rather than an earlier one; `seconds` is the time it
        took."""
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    took: float = 0.0
    _last: float = 0.0
    _told: float = 0.0

    def open(self, total: int, unit: str, done: int) -> None:
        self.unit, self.done, self.total, self.metrics = unit, done, total, {}
        self.passed[unit] += done
        self._last = time.monotonic()
        if done < total:
            self.publish()

    def advance(self, number: int = 1) -> None:
        """Count `number` more units as done."""
        now = time.monotonic()
        self.done += number
        self.passed[self.unit] += number
        self.counted[self.unit] += number
        self.seconds[self.unit] = self.seconds.get(self.unit, 0.0) + now - self._last
        self._last = now
        if not workers.is_worker() or now - self._told > _TELL_SECONDS:
            self.publish()

    def show(self, metrics: Mapping[str, float]) -> None:
        """Show these numbers in place of earlier ones."""
        self.metrics = metrics
        self.publish()

    def publish(self) -> None:
        self._told = time.monotonic()
        self.took = self._told - self.began
        if self.is_shown:
            workers.tell(self) if workers.is_worker() else hear(self)

    @property
    def amount(self) -> str:
        return f"{self.done}/{self.total} {self.unit}s"

    @property
    def numbers(self) -> list[str]:
        """The metrics as text."""
        found = self.metrics.items()
        return [f"{k} {v:,.0f}" if abs(v) >= 1000 else f"{k} {v:.3g}" for k, v in found]


class Display:
    """The screen of one command."""

    def __init__(self, plan: Plan, *, num_workers: int = 1, console: Console | None = None) -> None:
        self.plan = {name: Counter(work) for name, work in plan.items()}
        self.num_workers = num_workers
        self.console = console or Console(stderr=True)
        self.stages: dict[str, Stage] = {}
        """Stages that have begun, by name."""
        self.pace: dict[str, float] = {}
        """Seconds a unit of work, as last measured."""
        self._lines: dict[str, tuple[str, int, float]] = {}
        """Last plain line of each stage: its text, the work that was done, and the time."""
        self._live: Live | None = None
        if self.console.is_interactive:
            self._live = Live(
                console=self.console,
                get_renderable=self._render,
                transient=True,
                # What is printed to the same screen goes above the bars.
                redirect_stdout=sys.stdout.isatty(),
            )

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        for stage in self._active():
            stopped = f"{self._title(stage)}: stopped at {stage.amount}"
            self.print(self._result(stage) if kind is None else stopped)

    def show(self, stage: Stage) -> None:
        """Show the new state of a stage."""
        name = stage.names[0]
        self.stages[name] = stage
        for unit, counted in stage.counted.items():
            # The requests of a batch end almost together, so the first ones give a wrong pace.
            took, planned = stage.seconds[unit], self.plan.get(name, stage.passed)[unit]
            if counted and (4 * counted >= planned or took > _PACE_SECONDS):
                self.pace[unit] = took / counted
        if stage.is_over:
            # A stage that an earlier run had finished has nothing to show.
            if stage.counted.total():
                self.print(self._result(stage))
        elif self._live is None:
            self._tell(stage)

    def _tell(self, stage: Stage) -> None:
        """Print a plain line when a bar begins, and then from time to time."""
        about, now = f"{self._title(stage)}, {stage.unit}", time.monotonic()
        before, done, at = self._lines.get(stage.names[0], ("", 0, 0.0))
        tenth = 10 * (stage.done - done) >= stage.total and now - at > _TENTH_SECONDS
        if about != before or tenth or now - at > _LINE_SECONDS:
            self._lines[stage.names[0]] = about, stage.done, now
            details = [stage.amount, *self._left(stage), *self._all_left(), *stage.numbers]
            self.print(f"{self._title(stage)}: {', '.join(details)}")

    def _result(self, stage: Stage) -> str:
        work = " and ".join(f"{number} {unit}s" for unit, number in stage.passed.items())
        return ", ".join(
            [f"{self._title(stage)}: {work} in {_clock(stage.took)}", *stage.numbers[:2]]
        )

    def print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        lines: list[RenderableType] = []
        for stage in self._active():
            row = Table.grid(padding=(0, 1), expand=True)
            row.add_column(ratio=1)
            bar = ProgressBar(total=stage.total, completed=stage.done)
            row.add_row(bar, " · ".join([stage.amount, *self._left(stage)]))
            lines += [Text(self._title(stage), style="bold"), row]
            lines += [Text(" · ".join(stage.numbers), style="dim")] if stage.metrics else []
        return Group(*lines, *self._all_left())

    def _active(self) -> list[Stage]:
        return [stage for stage in list(self.stages.values()) if not stage.is_over]

    def _title(self, stage: Stage) -> str:
        names = list(self.plan)
        if stage.names[0] not in names or len(names) == 1:
            return ", ".join(stage.names)
        return f"stage {names.index(stage.names[0]) + 1} of {len(names)}: {', '.join(stage.names)}"

    def _left(self, stage: Stage) -> list[str]:
        """The time until the bar is full, where it is known."""
        if stage.unit not in self.pace:
            return []
        return [f"{_clock((stage.total - stage.done) * self.pace[stage.unit])} left"]

    def _all_left(self) -> list[str]:
        """The time until the last stage ends, once the pace of every kind of work is known."""
        ahead: Counter[str] = Counter()
        for name, work in self.plan.items():
            stage = self.stages.get(name, Stage([name]))
            ahead += Counter() if stage.is_over else work - stage.passed
        if len(self.plan) < 2 or not ahead.keys() <= self.pace.keys():
            return []
        seconds = sum(self.pace[unit] * number for unit, number in ahead.items())
        return [f"about {_clock(seconds / self.num_workers)} for all stages"]


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


_display: Display | None = None
_stage: Stage | None = None


@contextmanager
def display(plan: Plan, *, show: bool, num_workers: int = 1) -> Iterator[None]:
    """Show the stages of a whole command in their order; of several ranks only the first does."""
    global _display
    if not show or _display is not None or workers.is_worker() or workers.launched()[0] > 0:
        yield
        return
    try:
        with Display(plan, num_workers=num_workers) as _display:
            yield
    finally:
        _display = None


def hear(told: Stage | str) -> None:
    """Show the state of a stage, or a line of `note`, from this process or from a worker."""
    if isinstance(told, Stage):
        if _display is not None:
            _display.show(told)
    elif _display is not None:
        _display.print(told)
    else:
        print(told, file=sys.stderr)


def note(line: str) -> None:
    """Print a line above the bars."""
    if workers.is_worker():
        workers.tell(line)
    else:
        hear(line)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Open a stage of the plan or, inside a stage, a part of it, such as a round."""
    global _stage
    if _stage is not None:
        _stage.names.append(name)
        try:
            yield
        finally:
            _stage.names.pop()
        return
    _stage = Stage([name], began=time.monotonic())
    try:
        yield
        _stage.is_over = True
        _stage.publish()
    finally:
        _stage = None


@contextmanager
def bar(name: str, total: int, unit: str, *, done: int = 0, show: bool = True) -> Iterator[Stage]:
    """A bar of the stage that is open; where none is, of a new stage with this name.

    Args:
        total: units of work, `done` of which an earlier run did.
        unit: what is counted, in the singular.
    """
    if not show or workers.launched()[0] > 0:
        yield Stage([name], is_shown=False)
        return
    with ExitStack() as stack:
        if _stage is None:
            stack.enter_context(stage(name))
        assert _stage is not None
        stack.enter_context(display({_stage.names[0]: {unit: total}}, show=True))
        _stage.open(total, unit, done)
        yield _stage
