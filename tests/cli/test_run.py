"""`t3d run` in processes of its own: the whole route, killed and resumed."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from t3d.cli.main import main
from t3d.core.provenance import hash_weights
from t3d.core.store import TrajectoryStore
from t3d.models import from_pretrained
from tests.cli.conftest import Run, recipe
from tests.cli.test_bad_input import assert_refused

# Timings, and where the checkpoint lies.
LOCAL = ("tokens_per_second", "latency_seconds", "model")


def start(*arguments: object) -> subprocess.Popen[str]:
    # Under a shell that runs its jobs in the background, SIGINT would be ignored.
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "t3d", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def in_terminal(*arguments: object) -> tuple[str, str]:
    """stdout, and what a terminal of 100 columns is sent, of a command that succeeds."""
    screen, stderr = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "t3d", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(stderr)
    sent = b""
    # Linux tells the end of a terminal by an error.
    with suppress(OSError):
        while part := os.read(screen, 4096):
            sent += part
    os.close(screen)
    out, _ = process.communicate()
    assert process.returncode == 0, sent
    return out, sent.decode()


def stop_when(process: subprocess.Popen[str], ready: Callable[[], bool], number: int) -> str:
    """Send a signal as soon as `ready`; what the process wrote to stderr."""
    while not ready():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate()[1]


def rows(output: Path) -> list[dict[str, Any]]:
    document = json.loads((output / "results.json").read_text())
    return [{k: v for k, v in row.items() if k not in LOCAL} for row in document["rows"]]


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted; its recipe lies beside it."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    path = output.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(checkpoint)), encoding="utf-8")
    assert main(["run", str(path), "--output", str(output), "--progress", "false"]) == 0
    return output


def test_a_killed_run_resumes_to_the_same_results(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    command = ("run", finished.parent / "recipe.yaml", "--output", output)
    students = output / "checkpoints"
    for name, file in (("naive_td", "model.safetensors"), ("t3d", "reference.safetensors")):
        saved = students / f".{name}.training" / "checkpoint-2" / file
        stop_when(start(*command), saved.exists, signal.SIGKILL)
        assert not (students / name).exists()
    assert (students / "naive_td" / "provenance.json").exists()
    # Written after every student.
    assert {row["method"] for row in rows(output)} == {"original", "naive_td"}

    out, err = in_terminal(*command)
    assert rows(output) == rows(finished)
    for name in ("naive_td", "t3d"):
        weights = Path("checkpoints", name, "model.safetensors")
        assert (output / weights).read_bytes() == (finished / weights).read_bytes()
    # What students resume from goes when they are there.
    assert sorted(path.name for path in students.iterdir()) == ["naive_td", "t3d"]
    for name in (
        "results.json",
        "comparison.json",
        "report.md",
        "accuracy.png",
        "trajectories.html",
    ):
        assert (output / name).stat().st_size > 0
        assert str(output / name) in out.splitlines()
    # The screen has the stages, without what an earlier run did and what libraries say.
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err).replace("\r", "\n").split("\n")
    amounts = {line.partition(" in ")[0] for line in lines if line.startswith("stage ")}
    assert {
        "stage 7 of 9: student 2 of 2: t3d, seed 0",
        "stage 7 of 9: student 2 of 2: t3d, seed 0: 6 steps",
        "stage 9 of 9: evaluation of t3d, seed 0, 4 tokens/step, 1 step: 8 prompts",
    } <= amounts
    trained = "stage 7 of 9: student 2 of 2: t3d, seed 0: 6 steps in "
    assert any(line.startswith(trained) and ", loss " in line for line in lines)
    for text in ("stage 1 of 9", "stage 6 of 9", "{'", "it/s", "Warning", "deprecated", "shards"):
        assert text not in err
    assert err.rindex("\x1b[?25h") > err.rindex("\x1b[?25l")


def test_the_results_have_a_row_a_checkpoint_and_setting(finished: Path) -> None:
    found = [(row["method"], row["denoising_steps"]) for row in rows(finished)]
    assert found == [(m, s) for m in ("original", "naive_td", "t3d") for s in (4, 1)]
    trained = [row for row in rows(finished) if row["method"] != "original"]
    assert {row["optimizer_steps"] for row in trained} == {6}
    assert all(row["tokens_seen"] > 0 for row in trained)


def test_a_finished_run_prints_the_same_and_touches_no_checkpoint(finished: Path, t3d: Run) -> None:
    weights = finished / "checkpoints" / "t3d" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    recipe_path = finished.parent / "recipe.yaml"
    # How often it is saved changes no result.
    often = ("--training.save_seconds", "5")
    outcome = t3d("run", recipe_path, "--output", finished, "--progress", "false", *often)
    assert outcome.code == 0
    assert weights.stat().st_mtime_ns == before
    for text in ("Accuracy", "naive_td", "step  1  2  3  4"):
        assert text in outcome.out
    # One problem: the original at full steps, then every checkpoint at the fewest.
    assert outcome.out.count("original, 1 token/step, 4 steps, full") == 1
    assert outcome.out.count(", 4 tokens/step, 1 step") == 3


def test_another_recipe_in_the_same_directory_is_refused(finished: Path, t3d: Run) -> None:
    before = (finished / "recipe.json").read_bytes()
    recipe_path = finished.parent / "recipe.yaml"
    outcome = t3d("run", recipe_path, "--output", finished, "--training.steps", "7")
    assert outcome.code == 1
    assert f"{finished}: holds what another recipe made (training differ)" in outcome.err
    assert (finished / "recipe.json").read_bytes() == before


def test_a_method_may_be_added_and_is_the_only_one_trained(
    finished: Path, checkpoint: Path, tmp_path: Path, t3d: Run
) -> None:
    output, path = tmp_path / "more", tmp_path / "recipe.yaml"
    shutil.copytree(finished, output)
    made = [
        *output.glob("checkpoints/*/model.safetensors"),
        *output.glob("evaluation/**/row.json"),
        *output.glob("trajectories/shards/*.parquet"),
    ]
    before = {file: file.stat().st_mtime_ns for file in made}
    assert len(before) == 2 + 6 + 2
    document = recipe(checkpoint)
    more = {"sft": {"method": "sft"}, **document["methods"]}
    path.write_text(yaml.safe_dump(document | {"methods": more}), encoding="utf-8")
    outcome = t3d("run", path, "--output", output, "--progress", "false")
    assert outcome.code == 0, outcome.err
    assert before == {file: file.stat().st_mtime_ns for file in made}
    assert [row for row in rows(output) if row["method"] != "sft"] == rows(finished)
    assert [row["denoising_steps"] for row in rows(output) if row["method"] == "sft"] == [4, 1]
    # What was trained cannot become another method.
    changed = more | {"sft": {"method": "sft", "num_sequences": 8}}
    path.write_text(yaml.safe_dump(document | {"methods": changed}), encoding="utf-8")
    outcome = t3d("run", path, "--output", output, "--progress", "false")
    assert outcome.code == 1
    assert f"{output}/methods/sft: holds what another recipe made (num_seq" in outcome.err
    # Folders of seeds would lie within the students that are there.
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    outcome = t3d("compare", path, "--output", output, "--progress", "false")
    assert outcome.code == 1
    assert f"{output}: holds what another recipe made (by_seed differ)" in outcome.err


def test_a_run_of_two_tasks_trains_on_both_and_evaluates_both(
    checkpoint: Path, tmp_path: Path
) -> None:
    path, tasks = tmp_path / "recipe.yaml", ["mini_gsm", "mini_week"]
    document = recipe(checkpoint) | {"task": tasks, "methods": {"naive_td": {"method": "naive_td"}}}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    output = tmp_path / "out-smoke"
    process = start("run", path, "--smoke", "--output", tmp_path / "out")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert [(row["method"], row["task"], row["denoising_steps"]) for row in rows(output)] == [
        (method, task, steps)
        for method in ("original", "naive_td")
        for task in tasks
        for steps in (4, 1)
    ]
    asked = [row.prompt_id for row in TrajectoryStore.open(output / "trajectories").read()]
    assert [name.split(":")[0] for name in asked] == tasks * (len(asked) // 2)
    for text in (out, (output / "report.md").read_text(encoding="utf-8")):
        assert all(f"{task}, block size 4" in text for task in tasks)


def test_a_watched_student_is_the_same_and_its_best_is_kept(
    finished: Path, checkpoint: Path, tmp_path: Path, t3d: Run
) -> None:
    document = recipe(checkpoint) | {
        "watch": {"every": 4, "num_problems": 4, "decoding": {"max_new_tokens": 16}}
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    output = tmp_path / "watched"
    assert t3d("run", path, "--output", output, "--progress", "false").code == 0
    students = output / "checkpoints"
    for name in ("naive_td", "t3d"):
        directory = students / f".{name}.training"
        lines = (directory / "watch.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [4, 6]
        assert from_pretrained(directory / "best").mask_token_id > 0
        same = [hash_weights(run / "checkpoints" / name) for run in (output, finished)]
        assert same[0] == same[1]


def test_of_several_processes_the_first_one_reports(
    finished: Path, t3d: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    outcome = t3d("run", finished.parent / "recipe.yaml", "--output", finished)
    assert (outcome.code, outcome.out) == (0, "")


def test_runs_are_reported_together(finished: Path, tmp_path: Path, t3d: Run) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    document = json.loads((finished / "results.json").read_text())
    for row in document["rows"]:
        row["tokens_per_second"] *= 2
        row["seed"] = row["seed"] if row["method"] == "original" else 1
    (twin / "results.json").write_text(json.dumps(document))
    outcome = t3d("report", finished, twin, "--output", tmp_path / "report")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "report" / "report.md").exists()
    assert (tmp_path / "report" / "accuracy.png").stat().st_size > 0
    # Seeds of a method have a mean; the original, found twice, has one row.
    table = outcome.out.split("Speed")[0]
    assert table.count("mean") == 2
    assert table.count("original") == 1
    # Files do as well as folders; what differs under one name is told by its runs.
    assert t3d("report", finished / "results.json", twin).out == outcome.out.replace(
        "".join(f"{tmp_path}/report/{name}\n" for name in ("report.md", "accuracy.png")), ""
    )
    shared = next(row for row in document["rows"] if row["method"] == "original")
    shared["agreement"] = 0.125
    (twin / "results.json").write_text(json.dumps(document))
    assert_refused(t3d("report", finished, twin), 1, f"{twin}: another result of", f"in {finished}")


def test_interrupt_says_how_to_go_on(checkpoint: Path, tmp_path: Path, t3d: Run) -> None:
    output = tmp_path / "store"
    options = ("--num_prompts", 80, "--decoding.max_new_tokens", 16, "--shard_size", 4)
    command = ("rollout", "--model", checkpoint, "--output", output, *options)
    process = start(*command)
    err = stop_when(process, (output / "shards/part-00000-000000.json").exists, signal.SIGINT)
    assert process.returncode == 130
    first, *_, stopped, empty, last = err.split("\n")[:-1]
    assert first == "rollout: 0/80 prompts"
    assert re.fullmatch(r"rollout: stopped at \d+/80 prompts", stopped)
    assert (empty, last) == ("", "t3d: stopped; run the same command again to resume")
    assert not {"\r", "\x1b"} & set(err)
    num = len(list((output / "shards").glob("*.json")))
    assert 0 < num < 20
    outcome = t3d(*command, "--progress", "false")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{output}: 80 trajectories\n"


def test_the_answer_alone_is_on_stdout_of_a_pipe(checkpoint: Path) -> None:
    command = ("generate", "--model", checkpoint, "--decoding.max_new_tokens", 8, "-")
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", "t3d", *map(str, command)],
        input="How many apples?\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr == ""
    assert process.stdout.strip()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_stop_that_a_library_swallows_is_a_stop_all_the_same(number: str) -> None:
    program = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import t3d.cli.main as main
def swallows(**_):
    try:
        os.kill(os.getpid(), signal.{number})
    except BaseException:
        pass
    raise RecursionError("half imported")
main.parse = lambda *_: (swallows, {{"output": 1}})
sys.argv = ["t3d", "run", "demo"]
raise SystemExit(main.main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "t3d: stopped; run the same command again to resume"


def test_an_interrupt_while_a_worker_imports_ends_without_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, signal, sys\nos.kill(os.getpid(), signal.SIGINT)\n"
        "def set_num_threads(n): pass\n"
    )
    program = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from multiprocessing import Pipe, get_context
from t3d.core.workers import _start
numbers = get_context("spawn").SimpleQueue()
numbers.put(0)
alive, other = Pipe(duplex=False)
_start(numbers, numbers, 1, 0, 0, alive)
"""
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert (done.returncode, done.stderr) == (0, "")
