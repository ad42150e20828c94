"""The estimate of activations beside what a training pass holds on a CPU."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t3d.core.dtypes import Dtype, torch_dtype
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.forward import ModelInputs
from t3d.training.memory import activation_bytes
from t3d.training.methods import build_method
from t3d.training.trainer import DiffusionTrainer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "initializer_range": 0.02,
}


class Peak(TorchDispatchMode):
    """Largest number of bytes of the tensors that were made inside and live at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), before)
        return out

    def _add(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in before or key in self.seen:
            return
        self.seen.add(key)
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.held -= size


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_take_what_the_estimate_says(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Dtype, checkpointing: bool
) -> None:
    lm = bench.model(dtype=torch.float32, **SHAPE)
    settings = TrainingConfig(
        steps=1,
        batch_size=16,
        micro_batch_size=8,
        block_sizes=[4],
        dtype=dtype,
        activation_checkpointing=checkpointing,
        trainer={"use_cpu": True},
    )
    method = build_method(MethodConfig("naive_td"))
    trainer = DiffusionTrainer(lm, method, bench.rows(16, num_blocks=12), settings, tmp_path)
    packed: list[ModelInputs] = []
    peaks: list[Peak] = []
    predictions, step = trainer._predictions, trainer.training_step

    def keep(model: Any, inputs: ModelInputs) -> Any:
        packed.append(inputs)
        return predictions(model, inputs)

    def measured(*args: Any, **kwargs: Any) -> Tensor:
        with Peak() as peak:
            peaks.append(peak)
            return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "_predictions", keep)
    monkeypatch.setattr(trainer, "training_step", measured)
    trainer.train()
    # The first of two accumulated passes makes the gradients, which are no activations.
    inputs, peak = packed[1], peaks[1].most
    (num_rows, width), loss_tokens = inputs.input_ids.shape, len(inputs.select)
    told = activation_bytes(
        lm.model.config,
        rows=num_rows,
        width=width,
        loss_tokens=loss_tokens,
        dtype=torch_dtype(dtype, torch.device("cpu")),
        flex=False,
        checkpointing=checkpointing,
    )
    assert told == pytest.approx(peak, rel=0.2)
