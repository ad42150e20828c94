"""Weights in training: how they are placed, copied and saved. Subclasses: adapters and shards."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from t3d.models import LanguageModel

REFERENCE_FILE = "reference.safetensors"
Library = Callable[[], None]
"""Function that does what transformers' own trainer would do in place of a method."""


class Weights:
    """The plain case: every process holds all weights, and transformers saves and restores them.

    All processes call all methods. The parameter `trainer` is the `DiffusionTrainer`, whose
    reference, optimizer and schedule are read.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def place(self, frozen: list[nn.Module], device: torch.device, bf16: bool) -> None:
        """Bring the model and the frozen ones to the device of this process."""
        for model in (self.lm.model, *frozen):
            nn.Module.to(model, device)

    def frozen_copy(self, dtype: torch.dtype) -> nn.Module:
        """A frozen copy of the model as it is now, with weights no wider than `dtype`."""
        frozen = copy.deepcopy(self.lm.model).requires_grad_(False).eval()
        if dtype == torch.bfloat16:
            # Not the buffers: the rotary frequencies would be rounded.
            for weight in frozen.parameters():
                weight.data = weight.data.to(dtype)
        return frozen

    def refresh(self, reference: nn.Module) -> None:
        """Make a frozen copy equal the model again."""
        # Of a sharded model this copies each process's own part.
        reference.load_state_dict(self.lm.model.state_dict())

    def after_step(self, frozen: list[nn.Module]) -> None:
        """Free memory that frozen models hold for a backward pass that never comes."""

    def finish(self) -> None:
        """Give the model its plain form, in which it decodes; an adapter is merged."""

    def write(self, directory: Path, is_first: bool) -> None:
        """Write the model of this step in the published layout."""
        if is_first:
            self.lm.save(directory)

    def write_trained(self, directory: Path, is_first: bool) -> None:
        """Write the trained model, after `finish`."""
        self.write(directory, is_first)

    def save(self, directory: Path, trainer: Any, library: Library) -> None:
        """Write a checkpoint's model and reference."""
        if trainer.reference is not None and trainer.args.should_save:
            directory.mkdir(parents=True, exist_ok=True)
            save_model(trainer.reference, str(directory / REFERENCE_FILE))
        library()

    def load(self, directory: Path, library: Library) -> None:
        """Restore the model."""
        with warnings.catch_warnings():
            # transformers reads the config without its family, and then warns of `rope_scaling`.
            warnings.filterwarnings("ignore", "`rope_scaling`", FutureWarning)
            library()

    def load_reference(self, directory: Path, reference: nn.Module) -> None:
        """Restore the reference."""
        load_model(reference, str(directory / REFERENCE_FILE))

    def save_schedule(self, directory: Path, trainer: Any, library: Library) -> None:
        """Write the learning rate's schedule, and the optimizer unless `save` does."""
        library()

    def load_schedule(self, directory: Path, trainer: Any, library: Library) -> None:
        """Restore both."""
        library()
