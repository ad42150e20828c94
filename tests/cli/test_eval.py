"""`t3d eval` and what reads its results, through the command line."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from t3d.core.store import TrajectoryStore
from t3d.models import from_pretrained
from t3d.tasks.protocols import code_turn, t3d_code
from tests.cli.conftest import Run
from tests.cli.test_run import start, stop_when

SETTINGS = (
    "[{denoising_steps: 4, max_new_tokens: 8}, {denoising_steps: 1, max_new_tokens: 8},"
    " {denoising_steps: 4, remasking: low_confidence_dynamic, max_new_tokens: 8}]"
)
QUIET = ("--measure_latency", "false", "--progress", "false")


def rows(output: Path) -> list[dict[str, object]]:
    """Rows without their timings."""
    found = json.loads((output / "results.json").read_text())["rows"]
    return [row | {"tokens_per_second": 0} for row in found]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "mine.jsonl"
    lines = [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_own_questions_are_a_task(
    checkpoint: Path, questions: Path, tmp_path: Path, t3d: Run
) -> None:
    """Every sample keeps what it was asked, what came out and how."""
    command = ("eval", "--model", checkpoint, "--task", questions, "--settings", SETTINGS, *QUIET)
    outcome = t3d(*command, "--output", tmp_path / "one")
    assert outcome.code == 0, outcome.err
    (first, *_) = rows(tmp_path / "one")
    assert (first["n"], first["no_answer"], first["timed_out"]) == (6, 1.0, 0.0)
    assert first["string_accuracy"] == 0.0
    assert "Grading, block size 4" in outcome.out
    assert "timed out" in outcome.out
    table = pq.read_table(tmp_path / "one" / "samples.parquet").to_pylist()
    assert len(table) == 3 * 6
    assert len({row["setting"] for row in table}) == 3
    for row in table:
        assert "What is" in row["prompt"]
        assert len(row["step_map"]) == len(row["response_ids"])
        assert row["correct"] is False
        assert row["answer"] in {"0", "2", "4", "6", "8", "10"}
    longer = t3d(
        *command, "--max_new_tokens", 12, "--num_problems", 2, "--output", tmp_path / "long"
    )
    assert longer.code == 0
    assert all(12 <= len(row["response_ids"]) < 16 for row in _samples(tmp_path / "long"))


def _samples(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "samples.parquet").to_pylist()


def test_several_processes_killed_and_resumed_give_the_same_rows(
    checkpoint: Path, questions: Path, tmp_path: Path, t3d: Run
) -> None:
    command = ("eval", "--model", checkpoint, "--task", questions, "--settings", SETTINGS, *QUIET)
    one, two = tmp_path / "one", tmp_path / "two"
    outcome = t3d(*command, "--output", one)
    assert str(one / "results.json") in outcome.out, outcome.err
    shared = (*command, "--output", two, "--num_workers", "2")
    process = start(*shared)
    stop_when(process, lambda: any(two.glob("evaluation/*/shards/part-*.json")), signal.SIGKILL)
    assert not (two / "results.json").exists()
    outcome = t3d(*shared)
    assert str(two / "results.json") in outcome.out, outcome.err
    assert rows(two) == rows(one)
    assert {row["rank"] for row in _samples(two)} == {0, 1}


def test_frontier_and_calibration(
    checkpoint: Path, tmp_path: Path, t3d: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, output = tmp_path / "student", tmp_path / "calibration"
    shutil.copytree(checkpoint, student)
    command = ("calibrate", "--model", student, "--num_problems", 8, "--settings", SETTINGS, *QUIET)
    outcome = t3d(*command, "--max_loss", 90, "--output", output)
    assert outcome.code == 0, outcome.err
    assert "baseline" in outcome.out
    chosen = json.loads((output / "calibration.json").read_text())
    assert len(chosen["candidates"]) == 2
    # A model that knows nothing loses nothing, so the fastest setting is taken.
    written = json.loads((student / "generation_config.json").read_text())
    assert written["denoising_steps"] == chosen["row"]["denoising_steps"] == 1
    assert written["max_new_tokens"] == 8
    plain = t3d("generate", "--model", student, "How many?")
    asked = ("--decoding.denoising_steps", 1, "--decoding.max_new_tokens", 8)
    assert plain.out == t3d("generate", "--model", checkpoint, *asked, "How many?").out
    refused = t3d(*command[:2], "mini_teacher", *command[3:], "--output", tmp_path / "x")
    assert refused.code == 1
    assert "no checkpoint directory to write to; give --write false" in refused.err

    figures = tmp_path / "frontier"
    outcome = t3d("frontier", output, output, "--output", figures)
    assert outcome.code == 0, outcome.err
    assert "AUP" in outcome.out
    for name in ("frontier.md", "frontier.png", "frontier.json"):
        assert (figures / name).stat().st_size > 0


def test_data_commands(tmp_path: Path, t3d: Run, checkpoint: Path) -> None:
    source = tmp_path / "MATH_train.json"
    source.write_text(json.dumps([{"question": "1+1?", "ground_truth_answer": "2"}]))
    output = tmp_path / "math_train.jsonl"
    outcome = t3d("data", "convert", source, "--output", output, "--dataset", "math_train")
    assert (outcome.code, outcome.out) == (0, f"{output}: 1 problems\n"), outcome.err
    # Its options go with two words, too.
    missing = t3d("data", "download", "gsm9k")
    assert missing.code == 1
    assert "unknown data set 'gsm9k'" in missing.err
    absent = ("eval", "--model", checkpoint, "--task", "gsm8k", "--data", tmp_path / "none")
    outcome = t3d(*absent, "--output", tmp_path / "evaluation")
    assert outcome.code == 1
    assert "gsm8k_test.jsonl" in outcome.err
    assert not (tmp_path / "evaluation").exists()


def test_prompts_of_programs(tmp_path: Path, t3d: Run, checkpoint: Path) -> None:
    source, prompts = tmp_path / "Prime.json", tmp_path / "prime.jsonl"
    cases = {"test_method": "stdio", "test_input": ["1"], "test_output": ["1"]}
    source.write_text(json.dumps([{"question": "Copy.", "test_time_limit": 1} | cases]))
    assert t3d("data", "convert", source, "--output", prompts, "--dataset", "prime").code == 0
    few = ("--decoding.max_new_tokens", 8)
    put = {"t3d": t3d_code("Copy.", "", stdio=True), "standard": code_turn("Copy.", stdio=True)}
    for protocol, text in put.items():
        own = ("--prompts", prompts, "--protocol", protocol, "--output", tmp_path / protocol)
        outcome = t3d("rollout", "--model", checkpoint, *own, *few)
        assert outcome.code == 0, outcome.err
        [row] = TrajectoryStore.open(tmp_path / protocol).read()
        prompt = from_pretrained(checkpoint).text(row.prompt_ids)
        assert prompt == text if protocol == "t3d" else text in prompt
    outcome = t3d("generate", "--model", checkpoint, "--task", prompts, *few)
    assert "gold:     what passes its tests\nverdict:  wrong (no closed" in outcome.out, outcome.err
