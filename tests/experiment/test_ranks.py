"""Two processes of a launcher share a comparison and an evaluation, and find what one finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from t3d.cli.main import main
from t3d.evaluation.results import load_results
from t3d.experiment import rounds

ROOT = Path(__file__).parents[2]
SETTINGS = "[{denoising_steps: 4, max_new_tokens: 32}, {denoising_steps: 1, max_new_tokens: 32}]"
NUM_PROBLEMS = 5
RUN = f"""
data: {{num_prompts: 6, num_problems: {NUM_PROBLEMS}}}
rollout: {{decoding: {{max_new_tokens: 32}}, shard_size: 3}}
methods:
  naive_td: {{method: naive_td}}
  t3d: {{method: t3d, reference_every: 1, start: naive_td}}
training: {{steps: 2, batch_size: 4, micro_batch_size: 2, block_sizes: [4], save_seconds: .inf}}
evaluation: {{settings: {SETTINGS}, measure_latency: false}}
"""


def commands(folder: Path) -> list[list[str]]:
    """A student for each process, one student for both, and an evaluation."""
    recipe = folder.parent / "recipe.yaml"
    together = """{"redi": {"method": "redi", "rounds": 2}}"""
    evaluated = ["--num_problems", str(NUM_PROBLEMS), "--settings", SETTINGS]
    return [
        ["compare", str(recipe), "--seeds", "[3]", "--output", str(folder / "apart")],
        ["run", str(recipe), "--methods", together, "--output", str(folder / "together")],
        ["eval", "--model", "mini_teacher", "--output", str(folder / "eval"), *evaluated],
    ]


def work(folder: Path) -> None:
    """What every process does; the second one comes late to the last round's provenance."""
    read = rounds.read_object

    def read_late(path: Path) -> dict[str, Any]:
        time.sleep(path.parent.name == "round1")
        return read(path)

    if os.environ.get("RANK") == "1":
        rounds.read_object = read_late  # type: ignore[assignment]
    for command in commands(folder):
        assert main(command) == 0


def rows(folder: Path) -> list[dict[str, Any]]:
    """The results without the times that they took."""
    found = load_results(folder / "results.json")
    return [asdict(replace(row, tokens_per_second=0.0, latency_seconds=None)) for row in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made in `two`, with their messages, and one in `one`."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "recipe.yaml").write_text(RUN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.run(
        [*torchrun, "--nproc-per-node=2", __file__, str(folder / "two")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    (folder / "stderr.txt").write_text(process.stderr)
    work(folder / "one")
    return folder


@pytest.mark.parametrize("name", ["apart", "together", "eval"])
def test_two_processes_find_what_one_finds(folder: Path, name: str) -> None:
    one, two = (rows(folder / number / name) for number in ("one", "two"))
    assert len(one) == {"apart": 6, "together": 4, "eval": 2}[name]
    for ours, theirs in zip(two, one, strict=True):
        for key, value in theirs.items():
            # Gradients of two processes are summed in another order, so accuracies may differ.
            if name != "together" or theirs["method"] == "original":
                assert str(ours[key]).replace("/two/", "/one/") == str(value), key
            assert ours["n"] == NUM_PROBLEMS


@pytest.mark.parametrize("name", ["apart", "together", "eval"])
def test_each_process_decodes_its_share(folder: Path, name: str) -> None:
    files = sorted((folder / "two" / name / "evaluation").rglob("samples.parquet"))
    assert len(files) == len(rows(folder / "two" / name))
    for file in files:
        assert Counter(pq.read_table(file).column("rank").to_pylist()) == {0: 3, 1: 2}
        assert not (file.parent / "shards").exists()


def test_each_process_trains_a_student_of_its_own(folder: Path) -> None:
    # Only the first process shows what it does.
    told = (folder / "stderr.txt").read_text()
    assert len({n for n in (1, 2) if f"student {n} of 2: " in told}) == 1
    assert "student 1 of 1: redi" in told
    for number in ("one", "two"):
        record = folder / number / "apart/checkpoints/t3d/seed3/provenance.json"
        assert json.loads(record.read_text())["optimizer_steps"] == 4


if __name__ == "__main__":
    work(Path(sys.argv[1]))
