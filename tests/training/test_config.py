from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t3d.training.arguments import training_arguments
from t3d.training.config import LoraSettings, TrainingConfig


def test_the_published_optimiser():
    config = TrainingConfig()
    assert (config.learning_rate, config.weight_decay, config.beta2) == (1e-5, 0.01, 0.999)
    assert (config.warmup_steps, config.max_grad_norm) == (20, 1.0)


def test_settings_reach_transformers(tmp_path: Path):
    config = TrainingConfig(
        steps=7,
        batch_size=12,
        micro_batch_size=3,
        learning_rate=0.5,
        weight_decay=0.25,
        beta2=0.75,
        warmup_steps=2,
        seed=5,
        trainer={"adam_beta1": 0.5, "use_cpu": True},
    )
    arguments = training_arguments(config, tmp_path)
    assert arguments.output_dir == str(tmp_path)
    assert arguments.max_steps == 7
    assert arguments.per_device_train_batch_size == 3
    assert arguments.gradient_accumulation_steps == 4
    assert (arguments.learning_rate, arguments.weight_decay) == (0.5, 0.25)
    assert (arguments.adam_beta1, arguments.adam_beta2) == (0.5, 0.75)
    assert (arguments.warmup_steps, arguments.seed) == (2, 5)
    assert arguments.save_strategy == "no"
    assert arguments.report_to == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 10, "micro_batch_size": 4},
            "batch_size=10 is no multiple of micro_batch_size=4 x 1 processes",
        ),
        ({"trainer": {"learning_rate": 1.0}}, "trainer.learning_rate is owned by t3d"),
        ({"trainer": {"adam_bta1": 0.5}}, "trainer: not an argument of transformers: .*adam_bta1"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        training_arguments(TrainingConfig(**settings), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon, got 'sgd'"),
        (
            {"optimizer": "muon", "sharding": "full"},
            "muon needs whole matrices; leave out sharding",
        ),
        (
            {"optimizer": "muon", "lora": LoraSettings()},
            "muon needs whole matrices; leave out lora",
        ),
    ],
)
def test_optimizers_that_do_not_fit(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)
