"""Settings of a training run, and how they become transformers' TrainingArguments."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import TrainingArguments

from t3d.training.forward import Attention
from t3d.training.lora import LoraSettings
from t3d.training.sharding import Sharding

_CHECKPOINTING = (
    # transformers renamed it on the way.
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


@dataclass
class TrainingConfig:
    """Optimisation, shared by pretraining and every method.

    Args:
        steps: optimizer steps.
        batch_size: sequences an optimizer step, over all processes.
        micro_batch_size: sequences a forward pass and process; the rest is accumulated.
        block_sizes: block sizes to train at, one drawn for each optimizer step.
        learning_rate: peak rate of AdamW.
        weight_decay: of AdamW.
        beta2: of AdamW; beta1 is 0.9.
        warmup_steps: steps of linear warm-up, before a cosine to a tenth of the peak.
        max_grad_norm: gradient norm is clipped to it.
        save_steps: steps between checkpoints that a killed run resumes from; 0 for none.
        logging_steps: steps between logged metrics.
        report_to: trackers of transformers, such as tensorboard or wandb.
        bf16: compute in bfloat16, with float32 master weights.
        activation_checkpointing: compute activations once more in the backward pass, instead of
            keeping them: a layer's memory, for about a third more time.
        attention: sdpa, or flex_attention, which skips what no token sees but has no backward pass
            on a CPU; auto is flex_attention on a GPU. Decoding keeps its own.
        sharding: full splits weights, gradients and optimizer over all processes (FSDP2), and the
            frozen copies; none holds them in each.
        seed: of data order and noise.
        lora: train low-rank adapters beside the frozen weights; by default all weights.
        trainer: further transformers.TrainingArguments by name.
    """

    steps: int = 1000
    batch_size: int = 64
    micro_batch_size: int = 64
    block_sizes: list[int] = field(default_factory=lambda: [4, 8])
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    beta2: float = 0.999
    warmup_steps: int = 20
    max_grad_norm: float = 1.0
    save_steps: int = 0
    logging_steps: int = 10
    report_to: list[str] = field(default_factory=list)
    bf16: bool = False
    activation_checkpointing: bool = False
    attention: Attention = "auto"
    sharding: Sharding = "none"
    seed: int = 0
    lora: LoraSettings | None = None
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch_size", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "learning_rate",
            "weight_decay",
            "warmup_steps",
            "max_grad_norm",
            "save_steps",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.block_sizes or min(self.block_sizes) < 1:
            raise ValueError(f"block_sizes must name sizes from 1 up, got {self.block_sizes}")
        if self.attention not in get_args(Attention):
            raise ValueError(
                f"attention must be one of {', '.join(get_args(Attention))}, got {self.attention!r}"
            )
        if self.sharding not in get_args(Sharding):
            raise ValueError(
                f"sharding must be one of {', '.join(get_args(Sharding))}, got {self.sharding!r}"
            )
        if self.sharding == "full" and self.lora is not None:
            raise ValueError(
                "sharding: full trains all weights; leave lora out, or set sharding to none: "
                "adapters are small, and the base is held once"
            )
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must lie in [0, 1), got {self.beta2}")

    def arguments(self, output_dir: Path) -> TrainingArguments:
        """The same settings for transformers' Trainer.

        Raises:
            ValueError: if the batch does not divide among processes and micro-batches.
        """
        own = {
            "output_dir": str(output_dir),
            "max_steps": self.steps,
            "per_device_train_batch_size": self.micro_batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "adam_beta2": self.beta2,
            "warmup_steps": self.warmup_steps,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "max_grad_norm": self.max_grad_norm,
            "save_strategy": "steps" if self.save_steps else "no",
            "save_steps": self.save_steps or 500,
            "save_total_limit": 2,
            "logging_steps": self.logging_steps,
            "logging_nan_inf_filter": False,
            "report_to": self.report_to or "none",
            "bf16": self.bf16,
            _CHECKPOINTING: self.activation_checkpointing,
            "seed": self.seed,
            "remove_unused_columns": False,
            "dataloader_drop_last": True,
            "ddp_find_unused_parameters": False,
            "dataloader_pin_memory": torch.accelerator.is_available(),
            "disable_tqdm": True,
        }
        clash = sorted(set(self.trainer) & set(own))
        if clash:
            raise ValueError(f"trainer.{clash[0]} is owned by t3d; set the key of TrainingConfig")
        self._check_launch()
        # Processes on CPUs do not find each other without it, and train each for itself.
        device: dict[str, Any] = {"use_cpu": not torch.accelerator.is_available()}
        try:
            arguments = TrainingArguments(**(device | own | self.trainer))
        except TypeError as error:
            raise ValueError(f"trainer: not an argument of transformers: {error}") from None
        if arguments.n_gpu > 1:
            raise ValueError(
                f"one process sees {arguments.n_gpu} GPUs; start one for each with "
                "torchrun --nproc-per-node, or set CUDA_VISIBLE_DEVICES"
            )
        in_one_pass = self.micro_batch_size * arguments.world_size
        if self.batch_size % in_one_pass:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of micro_batch_size="
                f"{self.micro_batch_size} x {arguments.world_size} processes"
            )
        arguments.gradient_accumulation_steps = self.batch_size // in_one_pass
        return arguments

    def _check_launch(self) -> None:
        """Raise ValueError for what `accelerate launch` or `trainer` switches on beside t3d."""

        def on(switch: str, key: str) -> bool:
            return os.environ.get(switch, "false").lower() == "true" or bool(self.trainer.get(key))

        if on("ACCELERATE_USE_FSDP", "fsdp"):
            raise ValueError(
                "FSDP of accelerate: t3d shards a model itself; "
                "launch with t3d/recipes/accelerate/gpus.yaml and set training.sharding to full"
            )
        if self.sharding == "full" and on("ACCELERATE_USE_DEEPSPEED", "deepspeed"):
            raise ValueError(
                "sharding: full and DeepSpeed split the same weights; "
                "launch with t3d/recipes/accelerate/gpus.yaml, or set training.sharding to none"
            )
