"""`t3d compare` in processes of its own: several workers, killed, resumed, extended."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from t3d.cli.main import main
from t3d.experiment.plan import SMOKE
from tests.cli.conftest import Run, recipe
from tests.cli.test_run import rows, start, stop_when

STEPS = {"denoising_steps": 2}


def comparison(checkpoint: Path) -> dict[str, Any]:
    """Two methods, one of them in rounds, with two seeds."""
    base = recipe(checkpoint)
    dynamic = {"remasking": "low_confidence_dynamic", "max_new_tokens": 16}
    return base | {
        "methods": {
            "naive_td": {"method": "naive_td"},
            "again": {"method": "naive_td", "rounds": 2, "verify": True, "student_decoding": STEPS},
        },
        "training": base["training"] | {"steps": 4},
        "evaluation": base["evaluation"]
        | {"settings": [*base["evaluation"]["settings"], dynamic], "measure_latency": True},
        "seeds": [0, 1],
        "recommended": "again",
    }


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that one process made; its recipe lies beside it."""
    output = tmp_path_factory.mktemp("comparisons") / "whole"
    path = output.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(comparison(checkpoint)), encoding="utf-8")
    assert main(["compare", str(path), "--output", str(output), "--progress", "false"]) == 0
    return output


def results(output: Path) -> list[dict[str, Any]]:
    """With their timings."""
    return json.loads((output / "results.json").read_text())["rows"]


def test_every_method_has_every_seed_under_one_budget(finished: Path) -> None:
    found = rows(finished)
    checkpoints = {(row["method"], row["seed"]) for row in found}
    students = {(name, seed) for name in ("naive_td", "again") for seed in (0, 1)}
    assert checkpoints == students | {("original", 0)}
    assert len(found) == 3 * len(checkpoints)
    for row in found:
        assert row["optimizer_steps"] == (0 if row["method"] == "original" else 4)
        assert row["recommended"] == (row["method"] == "again")
    assert all(row["latency_seconds"] > 0 for row in results(finished))


def test_later_rounds_train_on_the_students_own_trajectories(finished: Path) -> None:
    rounds = finished / "rounds" / "again" / "seed0"
    manifest = json.loads((rounds / "trajectories1" / "manifest.json").read_text())
    first = json.loads((rounds / "round0" / "provenance.json").read_text())
    assert manifest["weights_hash"] == first["weights_hash"]
    assert manifest["decoding"]["denoising_steps"] == 2
    assert first["optimizer_steps"] == 2
    student = finished / "checkpoints" / "again" / "seed0" / "provenance.json"
    last = json.loads(student.read_text())
    assert last["optimizer_steps"] == 4
    second = [row["step"] - 2 for row in last["log"][len(first["log"]) :]]
    assert last["log"][: len(first["log"])] == first["log"]
    assert second == [row["step"] for row in first["log"]]
    assert last["tokens_seen"] > first["tokens_seen"]
    assert last["seed"] == 0
    assert last["model"] == first["model"]


def stop_with_workers(
    command: tuple[object, ...], ready: Callable[[], bool], number: int
) -> tuple[int, str]:
    """Start a comparison and send it a signal as soon as `ready`; its code, and what it told.

    The signal goes to the parent alone; its two workers end all the same.
    """
    process = start(*command)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: list[str] = []

    def is_time() -> bool:
        workers[:] = children.read_text().split()
        return ready()

    err = stop_when(process, is_time, number)
    assert len(workers) >= 2
    deadline = time.monotonic() + 20
    while any(map(_is_alive, workers)):
        assert time.monotonic() < deadline, "workers outlive a stopped comparison"
        time.sleep(0.1)
    return process.returncode, err


def test_an_interrupt_ends_workers_in_the_middle_of_a_student(
    finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "stopped"
    command = ("compare", finished.parent / "recipe.yaml", "--output", output, "--num_workers", "2")

    def in_training() -> bool:
        return any(output.glob("checkpoints/*/.seed*.training/checkpoint-*"))

    code, err = stop_with_workers(command, in_training, signal.SIGTERM)
    assert code == 130
    assert err.endswith("t3d: stopped; run the same command again to resume\n")
    assert "Traceback" not in err
    stopped = r"stage \d+ of 21: student \d of 4: .*: stopped at \d/\d steps"
    assert re.search(f"^{stopped}$", err, re.MULTILINE), err
    assert not (output / "results.json").exists()


def test_killed_workers_end_and_the_rest_resumes_to_the_same_results(
    finished: Path, tmp_path: Path, t3d: Run
) -> None:
    output = tmp_path / "killed"
    command = ("compare", finished.parent / "recipe.yaml", "--output", output, "--num_workers", "2")

    def one_is_trained() -> bool:
        return any((output / "checkpoints").glob("*/seed*/provenance.json"))

    _, err = stop_with_workers(command, one_is_trained, signal.SIGKILL)
    assert not {"\r", "\x1b"} & set(err)
    # The parent tells what its workers do.
    for line in (
        r"stage 1 of 21: rollout, part 1 of 2: 8 prompts in .*",
        r"stage 3 of 21: evaluation of original, 1 token/step, 4 steps, full: 8 prompts in .*",
        r"stage 5 of 21: student 1 of 4: again, seed 0, round 1 of 2: 0/2 steps.*",
    ):
        assert re.search(f"^{line}$", err, re.MULTILINE), err
    done = list((output / "checkpoints").glob("*/seed*/provenance.json"))
    assert 1 <= len(done) < 4
    before = {path: path.stat().st_mtime_ns for path in done}

    resumed = t3d(*command, "--progress", "false")
    assert resumed.code == 0, resumed.err
    assert rows(output) == rows(finished)
    # Beside other work only what the table of speed reads is timed, after that.
    for row in results(output):
        dynamic = row["remasking"] == "low_confidence_dynamic"
        assert (row["latency_seconds"] is not None) == dynamic
    assert before == {path: path.stat().st_mtime_ns for path in done}
    for name in ("results.json", "comparison.json", "report.md", "accuracy.png"):
        assert (output / name).stat().st_size > 0
        assert str(output / name) in resumed.out.splitlines()


def _is_alive(pid: str) -> bool:
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_seed_may_be_added_and_another_budget_may_not(
    finished: Path, t3d: Run, tmp_path: Path
) -> None:
    path = finished.parent / "recipe.yaml"
    more = t3d("compare", path, "--output", finished, "--seeds", "[0, 1]", "--progress", "false")
    assert more.code == 0
    assert "again" in more.out
    other = t3d("compare", path, "--output", finished, "--training.steps", "6")
    assert other.code == 1
    assert "training differ" in other.err


def test_what_stops_a_worker_stops_the_comparison(finished: Path, tmp_path: Path, t3d: Run) -> None:
    command = ("compare", finished.parent / "recipe.yaml", "--output", tmp_path / "wild")
    stopped = t3d(*command, "--num_workers", 2, "--training.learning_rate", "1e30")
    assert stopped.code == 1
    *shown, last = stopped.err.splitlines()
    assert "lower learning_rate" in last
    assert any(re.search(r"student .*: stopped at \d/\d steps", line) for line in shown)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seeds", "[1, 1]", "seeds must name each seed once"),
        ("--recommended", "nothing", "recommended='nothing' is none of the methods"),
        ("--num_workers", "0", "num_workers must lie in [1, 1024], got 0"),
    ],
)
def test_bad_settings(
    finished: Path, t3d: Run, tmp_path: Path, option: str, value: str, message: str
) -> None:
    output = tmp_path / "bad"
    outcome = t3d("compare", finished.parent / "recipe.yaml", "--output", output, option, value)
    assert outcome.code == 1
    assert message in outcome.err
    assert not output.exists()


def test_a_smoke_run_says_that_its_accuracies_mean_nothing(
    checkpoint: Path, tmp_path: Path, t3d: Run
) -> None:
    path, output = tmp_path / "recipe.yaml", tmp_path / "out"
    document = recipe(checkpoint) | {"methods": {"naive_td": {"method": "naive_td"}}}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    outcome = t3d("compare", path, "--smoke", "--output", output, "--progress", "false")
    assert outcome.code == 0, outcome.err
    assert "accuracies mean nothing" in SMOKE
    assert outcome.err.startswith(SMOKE)
    assert outcome.out.startswith(SMOKE)
