"""Stores, results and recipes name their dtype; files without one are float32."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from t3d.core.dtypes import torch_dtype
from t3d.core.store import TrajectoryStore
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.decoding.rollout import rollout
from t3d.evaluation.config import EvaluationConfig, GridConfig
from t3d.evaluation.results import load_results
from t3d.experiment import rounds
from t3d.experiment.grid import evaluate_into
from t3d.experiment.recipe import DataConfig, RunConfig
from t3d.experiment.run import run
from t3d.models import BlockDiffusionLM, from_pretrained
from t3d.tasks import get_task
from t3d.training.config import MethodConfig, TrainingConfig

FAST = DecodingConfig(denoising_steps=1, max_new_tokens=8)


def forget(path: Path) -> None:
    """Make a file of an earlier version of it, which did not name the dtype."""
    document = json.loads(path.read_text())
    assert document.pop("dtype") == "float32"
    path.write_text(json.dumps(document))


def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu() -> None:
    assert torch_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert torch_dtype("auto", torch.device("cpu")) == torch.float32
    with pytest.raises(ValueError, match="one of auto, float32, bfloat16, got 'half'"):
        from_pretrained("mini_teacher", dtype="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype must be one of"):
        RunConfig(dtype="half")  # type: ignore[arg-type]


def test_a_store_goes_on_in_its_own_dtype(tmp_path: Path) -> None:
    examples = get_task("mini_gsm").examples("train", 2)
    config = RolloutConfig(FAST)
    half = from_pretrained("mini_teacher", dtype="bfloat16")
    lm = from_pretrained("mini_teacher")
    assert rollout(half, examples, tmp_path / "half", config).manifest.dtype == "bfloat16"
    with pytest.raises(ValueError, match="was made with dtype = 'bfloat16', not 'float32'"):
        rollout(lm, examples, tmp_path / "half", config)
    rollout(lm, examples, tmp_path / "old", config)
    forget(tmp_path / "old" / "manifest.json")
    assert TrajectoryStore.open(tmp_path / "old").manifest.dtype == "float32"
    assert len(rollout(lm, examples, tmp_path / "old", config)) == 2
    with pytest.raises(ValueError, match="was made with dtype = 'float32', not 'bfloat16'"):
        rollout(half, examples, tmp_path / "old", config)


def test_an_evaluation_goes_on_in_its_own_dtype(tmp_path: Path) -> None:
    config = GridConfig((FAST,), num_problems=2, measure_latency=False)

    def evaluate(**changes: Any) -> None:
        asked = replace(config, **changes)
        evaluate_into("mini_teacher", None, asked, "test", tmp_path, progress=False)

    evaluate()
    [row] = load_results(tmp_path / "results.json")
    assert row.dtype == "float32"
    forget(tmp_path / "recipe.json")
    evaluate(dtype="float32")
    with pytest.raises(ValueError, match=r"another recipe made \(dtype differ\)"):
        evaluate(dtype="bfloat16")


def test_a_run_decodes_in_its_dtype_and_trains_float32_without_an_idle_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[list[str]] = []
    distill = rounds.distill

    def spy(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        models = [m for m in gc.get_objects() if issubclass(type(m), BlockDiffusionLM)]
        held.append([str(m.dtype) for m in models if m.device.type != "meta" and m not in before])
        return distill(*args, **kwargs)

    gc.collect()
    before = [m for m in gc.get_objects() if issubclass(type(m), BlockDiffusionLM)]
    monkeypatch.setattr(rounds, "distill", spy)
    config = RunConfig(
        output=tmp_path / "run",
        dtype="bfloat16",
        data=DataConfig(num_prompts=4, num_problems=2),
        rollout=RolloutConfig(FAST),
        methods={"redi": MethodConfig("redi", rounds=2)},
        training=TrainingConfig(steps=2, batch_size=2, micro_batch_size=2, block_sizes=[4]),
        evaluation=EvaluationConfig((FAST,), measure_latency=False),
    )
    assert [cell.row.dtype for cell in run(config, progress=False)] == ["bfloat16"] * 2
    # In both rounds the student alone is in memory.
    assert held == [["torch.float32"]] * 2
    for store in ("trajectories", "rounds/redi/trajectories1"):
        assert TrajectoryStore.open(tmp_path / "run" / store).manifest.dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"another recipe made \(dtype differ\)"):
        run(replace(config, dtype="float32"), progress=False)


def test_weights_that_are_trained_are_float32(tmp_path: Path) -> None:
    half = from_pretrained("mini_teacher", dtype="bfloat16")
    settings, method = TrainingConfig(steps=1, batch_size=2), MethodConfig("naive_td")
    with pytest.raises(
        ValueError, match="its weights are in bfloat16.*load it with dtype='float32'"
    ):
        rounds.distill(half, [{}, {}], method, settings, tmp_path / "student", progress=False)
