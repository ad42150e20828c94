"""Questions of one's own by the real command line: what is refused, and the whole how-to."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run
from tests.cli.test_bad_input import assert_refused

QUIET = ("--progress", "false")


def write_rows(path: Path, numbers: range) -> Path:
    """Questions with worked and final answers."""
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"question": f"Reverse {n}.", "reference": f"It is \\boxed{{{n}}}.", "answer": str(n)}
        for n in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_nothing_trains_on_what_is_evaluated(recipe_file: Path, tmp_path: Path, t3d: Run) -> None:
    output, mine = tmp_path / "run", write_rows(tmp_path / "mine.jsonl", range(8))
    other = write_rows(tmp_path / "other.jsonl", range(7, 23))
    call = ("run", recipe_file, "--output", output, *QUIET, "--task", mine)
    outcome = t3d(*call, "--dry_run")
    assert_refused(outcome, 1, "mine.jsonl is one file, so data.prompts would take the problems")
    prompts = ("--data.prompts", other)
    watch = ("--watch", "{every: 1}")
    assert_refused(t3d(*call, *prompts, *watch), 1, "so watch would take the problems")
    outcome = t3d(*call, *prompts)
    assert_refused(outcome, 1, f"other.jsonl: asks what problem mine/8 of {mine} asks")
    assert not output.exists()
