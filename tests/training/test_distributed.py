"""Several processes train what one does: in data parallel, in shards, resumed on other numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from torch import Tensor

from t3d import from_pretrained
from t3d.core.store import TrajectoryStore
from t3d.evaluation.config import WatchConfig
from t3d.experiment.recipe import RunConfig
from t3d.training.arguments import training_arguments
from t3d.training.config import LoraSettings, Sharding, TrainingConfig
from t3d.training.sharding import load_student
from tests.training import distributed_worker as worker

ROOT = Path(__file__).parents[2]


def launch(root: Path) -> None:
    """The worker's `main` in two processes, which kill themselves at its end."""
    torchrun = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.run(
        [*torchrun, "--nproc-per-node=2", worker.__file__, str(root)],
        # The C library then gives memory back that is freed, so that it can be measured.
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
    )
    assert "Signal 9 (SIGKILL) received" in process.stderr, process.stderr[-4000:]


def facts(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "facts.json").read_text())


def weights(directory: Path) -> dict[str, Tensor]:
    return from_pretrained(directory, dtype=torch.float64).model.state_dict()


def assert_same_training(actual: Path, expected: Path) -> None:
    a, b = facts(actual), facts(expected)
    assert len(a["logs"]) == len(b["logs"]) == worker.SETTINGS.steps
    for ours, theirs in zip(a["logs"], b["logs"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=2e-6)
    assert (a["steps"], a["tokens"]) == (b["steps"], b["tokens"])
    torch.testing.assert_close(weights(actual), weights(expected), rtol=0, atol=1e-7)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """All that takes processes, since they are slow to start."""
    one = tmp_path / "one"
    worker.train("none", one)
    for sharding in get_args(Sharding):
        worker.train_partly(sharding, tmp_path / f"{sharding}-1to2")
    worker.save_teacher(tmp_path / "teacher")
    worker.save_large(tmp_path / "large")
    launch(tmp_path)

    for sharding in get_args(Sharding):
        resumed = tmp_path / f"{sharding}-2to1"
        assert [path.name for path in (resumed / "training").iterdir()] == ["checkpoint-3"]
        worker.train(sharding, resumed)
        assert_trained(resumed, sharding, 1, one)
        assert_trained(tmp_path / f"{sharding}-1to2", sharding, 2, one)
        assert_trained(tmp_path / f"{sharding}-2", sharding, 2, one)
    start = worker.bench().model(tie_word_embeddings=True).model.state_dict()
    assert min((weights(one)[name] - start[name]).abs().max() for name in start) > 1e-3
    assert_half_precision(tmp_path)
    assert_same_rounds(tmp_path)
    assert_shares_were_read(tmp_path)


def assert_shares_were_read(root: Path) -> None:
    """Neither process held what it holds where each reads the whole file."""
    size = sum(path.stat().st_size for path in (root / "large").glob("*.safetensors"))
    for rank in range(2):
        share, all_of_it = json.loads((root / f"loading{rank}.json").read_text())
        # Half of student and of reference, beside the file that is being read.
        assert 0.9 * size < share < 1.5 * size < 2 * size < all_of_it


def assert_trained(directory: Path, sharding: Sharding, world_size: int, one: Path) -> None:
    """What `one` was, by as many processes and wrapped as the name says."""
    found = facts(directory)
    assert found["world_size"] == world_size
    assert found["data_parallel"] == (sharding == "none" and world_size == 2)
    assert found["sharded"] == (sharding == "full" and world_size == 2)
    # Every matrix has an even number of rows.
    assert found["held"] == found["all"] // (2 if found["sharded"] else 1)
    assert_same_training(directory, one)


def assert_half_precision(root: Path) -> None:
    """Shards in bfloat16: the arithmetic is, the weights are not."""
    worker.half_precision("none", root / "half1")
    half, single = facts(root / "half2"), facts(root / "half1")
    assert half["computed"] == ["torch.bfloat16"]
    assert single["computed"] == half["held"] == single["held"] == ["torch.float32"]
    assert half["loss"] != single["loss"]
    for name in ("loss", "grad_norm"):
        assert half[name] == pytest.approx(single[name], rel=0.03)


def assert_same_rounds(root: Path) -> None:
    """Rounds of two processes: the same trajectories and rewards, and the same student."""
    worker.rounds("none", root / "rounds1")
    runs = [root / name for name in ("rounds2", "rounds1")]
    for method, numbers in (("redi", (1, 2)), ("lightningrl", (0, 1))):
        students = [run / "checkpoints" / method for run in runs]
        torch.testing.assert_close(*map(weights, students), rtol=0, atol=1e-5)
        records = [json.loads((path / "provenance.json").read_text()) for path in students]
        for key in ("rounds", "optimizer_steps", "tokens_seen", "tokens_decoded", "seed"):
            assert records[0][key] == records[1][key]
        assert records[0]["rounds"] == (3 if method == "redi" else 2)
        assert records[0]["optimizer_steps"] > 0
        for number in numbers:
            paths = [run / "rounds" / method / f"trajectories{number}" for run in runs]
            stores = [TrajectoryStore.open(path).read() for path in paths]
            assert [t.response_ids for t in stores[0]] == [t.response_ids for t in stores[1]]
            ranks = {path.name[:10] for path in paths[0].rglob("*.parquet")}
            assert ranks == {"part-00000", "part-00001"}


@pytest.mark.parametrize(
    ("sharding", "changes", "device"),
    [
        ("full", {}, "meta"),
        ("full", {"tie_word_embeddings": True}, "meta"),
        ("none", {}, "cpu"),
        # The file holds single experts, which the model has in one tensor.
        ("full", {"family": "sdar_moe"}, "cpu"),
    ],
)
def test_weights_wait_for_being_split_where_files_hold_them_as_the_model_does(
    sharding: Sharding,
    changes: dict[str, Any],
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker.bench().model(dtype=torch.float32, **changes).save(tmp_path)
    assert load_student(str(tmp_path), "full").model.device.type == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load_student(str(tmp_path), sharding).model.device.type == device


def test_a_head_beside_embeddings_that_it_may_be_tied_to_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.bench().model(dtype=torch.float32).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load_student(str(tmp_path), "full").model.device.type == "cpu"


@pytest.mark.parametrize(
    ("settings", "switch", "message"),
    [
        ({}, "ACCELERATE_USE_FSDP", "FSDP of accelerate: .*training.sharding to full"),
        ({"trainer": {"fsdp": True}}, None, "FSDP of accelerate"),
        ({"sharding": "full"}, "ACCELERATE_USE_DEEPSPEED", "sharding: full and DeepSpeed"),
    ],
)
def test_another_way_of_sharding_is_refused(
    settings: dict[str, Any],
    switch: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = TrainingConfig(batch_size=8, micro_batch_size=8, **settings)
    if switch is not None:
        monkeypatch.setenv(switch, "true")
    with pytest.raises(ValueError, match=message):
        training_arguments(config, tmp_path)


def test_what_shards_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="sharding must be one of none, full, got 'half'"):
        TrainingConfig(sharding="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sharding: full trains all weights; leave lora out"):
        TrainingConfig(sharding="full", lora=LoraSettings())
    with pytest.raises(ValueError, match="watch: decodes with the model that one process holds"):
        RunConfig(watch=WatchConfig(), training=TrainingConfig(sharding="full"))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "t3d/recipes/accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_launch_configs_are_accelerates(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == 8 * config.num_machines
    assert config.use_cpu is False
