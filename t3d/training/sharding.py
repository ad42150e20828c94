"""FSDP2: split a model over all processes, save its checkpoints, and gather the whole model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from t3d.core.files import read_object, write_json
from t3d.core.workers import launched
from t3d.models import BlockDiffusionLM, LanguageModel, from_pretrained
from t3d.models.checkpoint import HEAD, read_tensors
from t3d.models.families import on_meta
from t3d.models.loading import check_finite
from t3d.models.tokenizers import locate
from t3d.training.config import Sharding
from t3d.training.weights import Library, Weights

SCHEDULE_FILE = "schedule.json"
"""File of a sharded checkpoint with the learning rate scheduler's state."""
SHARDS_DIRECTORY = "shards"
"""Folder of a sharded checkpoint with safetensors files, to which each process writes its part of
every tensor."""


def shard(model: BlockDiffusionLM, device: torch.device, dtype: torch.dtype | None) -> None:
    """Split all weights among the processes, in place; a layer is gathered while it computes.

    Embeddings and head stay gathered from the forward pass to the end of the backward pass, since
    the head is applied outside the forward pass (`objectives.Predictions`). In a model that has no
    backward pass they stay gathered until `FSDPModule.reshard`.

    Args:
        model: a model on the CPU, so that no device ever holds all of it, on `device`, or on the
            meta device, with weights that `read_part` reads.
        device: device of this process.
        dtype: number format of the arithmetic, by default that of the weights; gradients are summed
            in float32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    precision = MixedPrecisionPolicy(dtype, None if dtype is None else torch.float32)
    for layer in cast(Iterable[nn.Module], model.base_model.layers):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)


def load_student(name: str, sharding: Sharding) -> LanguageModel:
    """A model to be trained; where several processes split it, its weights are yet to be read.

    It is read whole where its file holds other tensors than the model: those of single experts, or
    a head beside embeddings that it may be tied to.

    Raises:
        ValueError: as `from_pretrained` does.
    """
    if sharding == "none" or launched()[1] == 1:
        return from_pretrained(name)
    lm, stored = from_pretrained(name, device="meta"), read_tensors(locate(name))
    is_tied = lm.model.config.tie_word_embeddings and HEAD in stored
    same = {key for key, _ in lm.model.named_parameters()} <= stored.keys()
    return lm if same and not is_tied else from_pretrained(name)


def read_part(model: BlockDiffusionLM, device: torch.device, source: Path) -> None:
    """Read a model that was split on the meta device; each process reads its part of every tensor.

    Raises:
        ValueError: for weights that are not finite.
    """
    model.to_empty(device=device)
    model.tie_weights()
    # Its buffers are in no file.
    rotary: Any = model.base_model.rotary_emb
    model.base_model.rotary_emb = type(rotary)(model.config).to(device)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    _read(source, weights)
    check_finite(str(source), {n: cast(DTensor, w).to_local() for n, w in weights.items()})


def gathered(model: BlockDiffusionLM) -> BlockDiffusionLM | None:
    """A whole copy on the CPU of the first process, for saving; None on the others.

    All processes must call it.
    """
    weights: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if _is_first():
            weights[name] = whole.detach().cpu()
    if not _is_first():
        return None
    plain = on_meta(model.config)
    # Tied weights appear under one of their names only, hence `strict=False`.
    plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()
    assert not any(weight.is_meta for weight in plain.parameters())
    return plain


def tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module by `prefix` and name, for `save` and `load`."""
    return {f"{prefix}.{name}": weight.detach() for name, weight in module.named_parameters()}


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of every weight; made of zeros before the first step."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    return {
        # Sharded saving cuts slices, for which a scalar needs a dimension.
        f"optimizer.{key}": value.view(1) if value.dim() == 0 else value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def save(directory: Path, state: Mapping[str, Tensor]) -> None:
    """Write a checkpoint's tensors; every process writes its own shards, and all wait for all."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    path = directory / SHARDS_DIRECTORY
    path.mkdir(parents=True, exist_ok=True)
    # safetensors, because torch's own format of sharded checkpoints contains a pickle.
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    with _alone_or_not():
        state_dict_saver.save(dict(state), storage_writer=writer)


def load(directory: Path, state: Mapping[str, Tensor]) -> None:
    """Fill tensors with what `save` wrote, on any number of processes."""
    _read(directory / SHARDS_DIRECTORY, state)


def _read(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Fill tensors from a folder's safetensors; of one in shards a process reads its own."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    with _alone_or_not():
        state_dict_loader.load(dict(state), storage_reader=reader)


@contextmanager
def _alone_or_not() -> Iterator[None]:
    """Context without torch's warning that a single process saves or loads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
        yield


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


class ShardedWeights(Weights):
    """Every weight, frozen models and checkpoints included, is split over the processes."""

    def place(self, frozen: list[nn.Module], device: torch.device, bf16: bool) -> None:
        if not dist.is_initialized():
            # One process has nothing to split; its checkpoints have the same form as those of many.
            super().place(frozen, device, bf16)
            return
        for model in (self.lm.model, *frozen):
            assert isinstance(model, BlockDiffusionLM)
            is_described = model.device.type == "meta"
            if not is_described:
                # So that no device ever holds a whole model.
                nn.Module.to(model, "cpu")
            shard(model, device, torch.bfloat16 if bf16 else None)
            if is_described:
                read_part(model, device, locate(self.lm.name))
        # This mark keeps accelerate from wrapping the model a second time.
        self.lm.model._is_accelerate_prepared = True  # type: ignore[assignment]

    def after_step(self, frozen: list[nn.Module]) -> None:
        for model in frozen:
            if isinstance(model, FSDPModule):
                model.reshard()

    def write(self, directory: Path, is_first: bool) -> None:
        whole = gathered(self.lm.model)
        if whole is not None:
            replace(self.lm, model=whole).save(directory)

    def save(self, directory: Path, trainer: Any, library: Library) -> None:
        state = tensors("model", self.lm.model)
        if trainer.reference is not None:
            state |= tensors("reference", trainer.reference)
        save(directory, state | optimizer_tensors(self.lm.model, trainer.optimizer))

    def load(self, directory: Path, library: Library) -> None:
        load(directory, tensors("model", self.lm.model))

    def load_reference(self, directory: Path, reference: nn.Module) -> None:
        load(directory, tensors("reference", reference))

    def save_schedule(self, directory: Path, trainer: Any, library: Library) -> None:
        if trainer.args.should_save:
            write_json(directory / SCHEDULE_FILE, trainer.lr_scheduler.state_dict())

    def load_schedule(self, directory: Path, trainer: Any, library: Library) -> None:
        load(directory, optimizer_tensors(self.lm.model, trainer.optimizer))
        schedule: LRScheduler = trainer.lr_scheduler
        schedule.load_state_dict(read_object(directory / SCHEDULE_FILE))
        rates = schedule.get_last_lr()
        for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
