from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from t3d.core.provenance import hash_weights
from t3d.models import from_pretrained
from t3d.training.config import LoraSettings, MethodConfig, TrainingConfig
from t3d.training.distill import distill
from t3d.training.methods import build_method
from t3d.training.run import fit

TRAINING = TrainingConfig(
    steps=3, batch_size=4, micro_batch_size=2, learning_rate=1e-3, warmup_steps=0, logging_steps=1
)


@pytest.mark.parametrize("method", ["t3d", "naive_td"])
def test_distilling_saves_a_student_that_loads(bench: Any, tmp_path: Path, method: str):
    lm, teacher = bench.model(dtype=torch.float32), bench.model(dtype=torch.float32)
    output = tmp_path / "student"
    settings = MethodConfig(method, noiser={"level_power": 2.0}, learning_rate=5e-3)
    record = distill(lm, bench.rows(9), settings, TRAINING, output, progress=False)
    assert not lm.model.training, "a trained student can decode"
    student = from_pretrained(output)
    for name, value in lm.model.state_dict().items():
        assert torch.equal(student.model.state_dict()[name], value)
    assert not torch.equal(lm.model.model.norm.weight, teacher.model.model.norm.weight)
    assert record["optimizer_steps"] == 3
    assert record["tokens_seen"] > 3 * 4 * 2
    assert record["weights_hash"] == hash_weights(output)
    assert record["config"]["method"]["method"] == method
    assert record["config"]["training"]["learning_rate"] == 5e-3
    assert [row["step"] for row in record["log"]] == [1, 2, 3]
    assert all(row["loss"] > 0 for row in record["log"])
    assert json.loads((output / "provenance.json").read_text()) == record


@pytest.mark.parametrize("rate", [1e25, 1e30, 3e38])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_a_student_that_overflows_is_not_saved(
    bench: Any, tmp_path: Path, rate: float, lora: LoraSettings | None
) -> None:
    """The last update has no loss after it that would tell."""
    lm, output = bench.model(dtype=torch.float32), tmp_path / "student"
    training = replace(TRAINING, steps=1, learning_rate=rate, lora=lora)
    with pytest.raises(ValueError, match=r"student: model\..* holds NaN, infinity or numbers near"):
        distill(lm, bench.rows(9), MethodConfig("naive_td"), training, output, progress=False)
    assert not output.exists()


def test_a_student_that_was_trained_but_not_saved_is_only_saved(bench: Any, tmp_path: Path):
    """The last step has a checkpoint; training again would go one step too far."""
    training = replace(TRAINING, steps=4, save_seconds=0)
    rows, settings = bench.rows(9), MethodConfig("t3d", reference_every=3)
    lm = bench.model(dtype=torch.float32)
    fit(lm, build_method(settings), rows, training, tmp_path / ".killed.training", progress=False)
    records = []
    for name in ("killed", "whole"):
        lm = bench.model(dtype=torch.float32)
        records.append(distill(lm, rows, settings, training, tmp_path / name, progress=False))
    # What training resumes from goes once the student is there.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
    for key in ("optimizer_steps", "tokens_seen", "weights_hash"):
        assert records[0][key] == records[1][key]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (MethodConfig("sft", rounds=2), "method sft: rounds: labelled answers are not decoded"),
        (MethodConfig("t4d"), "unknown method 't4d'"),
        (MethodConfig("t3d", objective={"gamma": 1}), "unknown key 'gamma'"),
    ],
)
def test_mistakes_are_named(bench: Any, tmp_path: Path, settings: MethodConfig, message: str):
    with pytest.raises(ValueError, match=message):
        distill(bench.model(), bench.rows(4), settings, TRAINING, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_method_trains_on_a_sequence_at_least():
    with pytest.raises(ValueError, match="method t3d: num_sequences must be at least 1, got 0"):
        MethodConfig("t3d", num_sequences=0)
