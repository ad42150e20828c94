"""What a command shows of its stages."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console

from t3d.core import progress
from t3d.core.progress import Display, Stage, bar, display, stage
from t3d.core.workers import pool, tell

PLAN = {"rollout": {"prompt": 40}, "student 1 of 1: t3d": {"step": 10}, "evaluation": {"prompt": 8}}
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Clock:
    """Time that passes as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def screen(width: int = 80, *, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def count(
    clock: Clock, number: int, seconds: float, *, total: int, unit: str, name: str = "alone"
) -> None:
    """A bar whose units take `seconds` each."""
    with bar(name, total, unit) as counter:
        for _ in range(number):
            clock.now += seconds
            counter.advance()


def opened(monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    """The display of a command writes to `console`."""
    monkeypatch.setattr(progress, "Display", partial(Display, console=console))


def test_a_terminal_shows_stage_bar_time_and_metrics_in_place(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = screen(terminal=True)
    opened(monkeypatch, console)
    with display(PLAN, show=True):
        count(clock, 40, 0.5, total=40, unit="prompt", name="rollout")
        with (
            stage("student 1 of 1: t3d"),
            stage("round 2 of 2"),
            bar("training", 10, "step") as steps,
        ):
            for _ in range(4):
                clock.now += 10
                steps.advance()
            steps.show({"loss": 0.12345, "tokens/s": 51234.5})
            # Drawn at a time of its own otherwise.
            console.print(progress._display._render())  # type: ignore[union-attr]
            assert written(console).count(HIDE_CURSOR) == 1
            assert SHOW_CURSOR not in written(console)
    shown = written(console)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n")]
    assert "stage 1 of 3: rollout: 40 prompts in 0:00:20" in lines
    assert "stage 2 of 3: student 1 of 1: t3d, round 2 of 2" in lines
    [row] = {line for line in lines if "4/10 steps" in line}
    assert re.fullmatch(r"━+[╸╺]━+ 4/10 steps · 0:01:00 left", row)
    assert len(row) == 80
    assert "loss 0.123 · tokens/s 51,234" in lines
    # Six steps, and eight prompts as those of the rollout.
    assert "about 0:01:04 for all stages" in lines
    last = "stage 2 of 3: student 1 of 1: t3d: 4 steps in 0:00:40, loss 0.123, tokens/s 51,234"
    assert last in lines
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_leaves_a_line_that_says_where_it_stopped(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    console = screen(terminal=terminal)
    opened(monkeypatch, console)

    def work() -> None:
        with display(PLAN, show=True), bar("rollout", 40, "prompt") as counter:
            counter.advance(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    shown = written(console)
    assert shown.endswith("stage 1 of 3: rollout: stopped at 3/40 prompts\n")
    assert (SHOW_CURSOR in shown) == terminal
    # Nothing stays open.
    assert (progress._display, progress._stage) == (None, None)


def test_elsewhere_there_are_plain_lines_a_tenth_or_thirty_seconds_apart(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = screen(width=20)
    opened(monkeypatch, console)
    count(clock, 100, 1, total=100, unit="step")
    lines = written(console).splitlines()
    assert lines[0] == "alone: 0/100 steps"
    assert lines[-1] == "alone: 100 steps in 0:01:40"
    assert [line.split()[1] for line in lines[1:-1]] == [f"{n}/100" for n in range(10, 101, 10)]
    assert lines[3] == "alone: 30/100 steps, 0:01:10 left"
    count(clock, 100, 0.01, total=100, unit="step", name="quick")
    assert written(console).splitlines()[len(lines) :] == [
        "quick: 0/100 steps",
        "quick: 100 steps in 0:00:01",
    ]
    count(clock, 7, 20, total=1000, unit="step", name="slow")
    amounts = re.findall(r"slow: (\d+)/1000", written(console))
    assert amounts == ["0", "2", "4", "6"]
    assert not {"\r", "\x1b"} & set(written(console))


def test_what_an_earlier_run_finished_is_skipped_and_takes_no_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = screen()
    opened(monkeypatch, console)
    with display(PLAN, show=True):
        with bar("rollout", 40, "prompt", done=40):
            pass
        with stage("student 1 of 1: t3d"):
            pass
        with bar("evaluation", 8, "prompt", done=4) as counter:
            clock.now += 2
            counter.advance(2)
            counter.advance(2)
    assert written(console).splitlines() == [
        "stage 3 of 3: evaluation: 4/8 prompts",
        "stage 3 of 3: evaluation: 8 prompts in 0:00:02",
    ]


def test_the_time_for_all_is_known_once_all_kinds_of_work_were_seen_and_shared_by_workers() -> None:
    plan = {"a": {"step": 10}, "b": {"step": 10, "prompt": 20}, "c": {"step": 10}}
    shown = Display(plan, num_workers=2, console=screen())

    def at(name: str, unit: str, done: int, each: float) -> Stage:
        found = Stage([name], unit=unit, done=done, total=10)
        found.passed[unit] = found.counted[unit] = done
        found.seconds[unit] = done * each
        return found

    shown.show(at("a", "step", 5, 2.0))
    assert shown._all_left() == []
    shown.show(at("b", "prompt", 10, 1.0))
    # (5 + 10 + 10) steps of two seconds and 10 prompts of one, by two workers.
    assert shown._all_left() == ["about 0:00:30 for all stages"]


def test_hidden_or_of_another_rank_it_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(show: bool) -> None:
        with display(PLAN, show=show), stage("rollout"), bar("", 2, "prompt", show=show) as counter:
            counter.advance()
            counter.show({"loss": 1.0})

    work(show=False)
    assert capsys.readouterr() == ("", "")
    with bar("outer", 1, "step"), bar("inner", 5, "prompt", show=False) as counter:
        counter.advance()
    assert "prompt" not in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    work(show=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    work(show=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "stage 1 of 3: rollout: 1 prompts" in err


def test_workers_tell_their_parent() -> None:
    heard: list[object] = []
    with pool(1, heard.append) as workers:
        for future in [workers.submit(tell, number) for number in range(20)]:
            future.result()
    assert heard == list(range(20))


PROGRAM = """
import logging, sys, warnings
from t3d.cli import main as cli
cli._command = lambda argv: sys.exit(warn())
def warn():
    warnings.warn("a warning")
    logging.getLogger("accelerate").warning("a note")
cli.main()
"""


def test_the_command_line_silences_libraries_unless_python_is_asked_to_warn() -> None:
    def err(*options: str) -> str:
        command = [sys.executable, *options, "-c", PROGRAM]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    assert err() == ""
    assert "UserWarning: a warning" in err("-W", "error")
    assert "a note" in err("-W", "default")
