"""Translate the settings of a training run into transformers' TrainingArguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from t3d.core.dtypes import torch_dtype
from t3d.core.files import first_words
from t3d.core.workers import own_device
from t3d.training.config import TrainingConfig

_CHECKPOINTING = (
    # transformers renamed it on the way.
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


_SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    },
    "constant": {"lr_scheduler_type": "constant_with_warmup"},
}


def training_arguments(config: TrainingConfig, output_dir: Path) -> TrainingArguments:
    """A run's settings as transformers' Trainer takes them.

    Raises:
        ValueError: if the batch does not divide among processes and micro-batches.
    """
    # Without `use_cpu`, processes on CPUs would not find each other, and each train by itself.
    device: dict[str, Any] = {"use_cpu": not torch.accelerator.is_available()} | config.trainer
    place = torch.device("cpu") if device["use_cpu"] else own_device()
    own = {
        "output_dir": str(output_dir),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.beta2,
        "warmup_steps": config.warmup_steps,
        **_SCHEDULES[config.schedule],
        "max_grad_norm": config.max_grad_norm,
        # The callback `Saving` asks for checkpoints by time. An older one is deleted when a newer
        # one is complete.
        "save_strategy": "no",
        "save_total_limit": 1,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,
        "report_to": config.report_to or "none",
        "bf16": torch_dtype(config.dtype, place) == torch.bfloat16,
        _CHECKPOINTING: config.activation_checkpointing,
        "seed": config.seed,
        "remove_unused_columns": False,
        "dataloader_drop_last": True,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": True,
    }
    clash = sorted(set(config.trainer) & set(own))
    if clash:
        raise ValueError(f"trainer.{clash[0]} is owned by t3d; set the key of TrainingConfig")
    _check_launch(config)
    _check_trackers(config.report_to)
    try:
        arguments = TrainingArguments(**(device | own))
    except TypeError as error:
        raise ValueError(f"trainer: not an argument of transformers: {error}") from None
    except ImportError as error:
        raise ValueError(
            f"trainer: asks for a package that is not there ({first_words(error)}); "
            "install it, or leave the key out"
        ) from None
    if arguments.n_gpu > 1:
        raise ValueError(
            f"one process sees {arguments.n_gpu} GPUs; start one for each with "
            "torchrun --nproc-per-node, or set CUDA_VISIBLE_DEVICES"
        )
    in_one_pass = config.micro_batch_size * arguments.world_size
    if config.batch_size % in_one_pass:
        raise ValueError(
            f"batch_size={config.batch_size} is no multiple of micro_batch_size="
            f"{config.micro_batch_size} x {arguments.world_size} processes"
        )
    arguments.gradient_accumulation_steps = config.batch_size // in_one_pass
    return arguments


def _check_trackers(names: list[str]) -> None:
    """Raise ValueError for a tracker that transformers does not know, or that is not installed."""
    known, there = set(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise ValueError(f"report_to: {name!r} is none of {', '.join(sorted(known))}")
        if name not in there:
            raise ValueError(f"report_to: {name} is not installed; install it, or leave it out")


def uses_deepspeed(config: TrainingConfig) -> bool:
    """Whether `accelerate launch` or `trainer` switches DeepSpeed on."""
    return _is_on(config, "ACCELERATE_USE_DEEPSPEED", "deepspeed")


def _is_on(config: TrainingConfig, switch: str, key: str) -> bool:
    return os.environ.get(switch, "false").lower() == "true" or bool(config.trainer.get(key))


def _check_launch(config: TrainingConfig) -> None:
    """Raise ValueError for what `accelerate launch` or `trainer` switches on beside t3d."""
    if _is_on(config, "ACCELERATE_USE_FSDP", "fsdp"):
        raise ValueError(
            "FSDP of accelerate: t3d shards a model itself; "
            "launch with t3d/recipes/accelerate/gpus.yaml and set training.sharding to full"
        )
    if config.sharding == "full" and uses_deepspeed(config):
        raise ValueError(
            "sharding: full and DeepSpeed split the same weights; "
            "launch with t3d/recipes/accelerate/gpus.yaml, or set training.sharding to none"
        )
