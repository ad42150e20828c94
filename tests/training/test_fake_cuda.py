"""A training step on CUDA in bfloat16 without a GPU: devices and dtypes of every method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t3d.training.config import TrainingConfig
from t3d.training.methods import METHODS
from t3d.training.trainer import DiffusionTrainer
from tests.fake_cuda import (
    CUDA,
    LOWER,
    SINGLE,
    autocast,
    cuda_autocast,
    fake_training,
    needs_no_driver,
    train_on_fake_cuda,
    value_of,
)

pytestmark = needs_no_driver


# Methods of one noiser and one objective differ in what surrounds a step.
@pytest.mark.parametrize("name", {(m.noiser, m.objective): n for n, m in METHODS.items()}.values())
def test_a_step_of_every_method_runs_in_half_precision(
    name: str, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, rows = bench.model(dtype=torch.float32, num_hidden_layers=1), bench.rows(4, num_blocks=2)
    config = TrainingConfig(
        steps=2, batch_size=4, micro_batch_size=4, dtype="bfloat16", attention="sdpa"
    )
    trainer = DiffusionTrainer(lm, METHODS[name], rows, config, tmp_path)
    monkeypatch.setattr(trainer.accelerator, "autocast", autocast)
    monkeypatch.setitem(trainer.args.__dict__, "_setup_devices", CUDA)
    attend, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], set()

    def watched(module: Any, *inputs: Tensor, **options: Any) -> Any:
        seen.update((tensor.dtype, tensor.device) for tensor in inputs[:3])
        return attend(module, *inputs, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", watched)
    before = {key: weight.clone() for key, weight in lm.model.named_parameters()}
    with fake_training():
        for model in (lm.model, *trainer.frozen):
            train_on_fake_cuda(model)
        loss = trainer.training_step(
            lm.model, trainer.data_collator(rows), torch.tensor(4).to(CUDA)
        )
        norm = nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        trainer.create_optimizer().step()
    assert seen == {(torch.bfloat16, CUDA)}
    assert (loss.dtype, loss.device, norm.device) == (torch.float32, CUDA, CUDA)
    assert value_of(loss).isfinite()
    for key, weight in lm.model.named_parameters():
        assert weight.grad is not None
        assert {(t.dtype, t.device) for t in (weight, weight.grad)} == {(torch.float32, CUDA)}
        assert not torch.equal(value_of(weight), before[key])


def test_a_tensor_on_the_cpu_is_caught(bench: Any) -> None:
    """And values are those of the CPU, gradients too."""
    values = torch.tensor([3.0, 0.0, 2.0])
    with fake_training():
        weight = values.to(CUDA).requires_grad_()
        with pytest.raises(RuntimeError, match=r"two devices, cuda:0 and cpu|cpu and cuda:0"):
            weight.mul(torch.ones(3))
        loss = (weight[weight > 0].exp() * torch.ones(2, device=weight.device)).sum()
        loss.backward()
    assert weight.grad is not None
    assert torch.equal(value_of(weight.grad), values.exp() * (values > 0))


def test_autocast_is_that_of_torch() -> None:
    """torch's own works where no gradient is asked for."""
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "__matmul__": lambda x: x @ x,
        "bmm": lambda x: torch.bmm(x.unsqueeze(0), x.unsqueeze(0)),
        "linear": lambda x: nn.functional.linear(x, x),
        "matmul": lambda x: torch.matmul(x, x),
        "mm": lambda x: torch.mm(x, x),
        "pow": lambda x: x.pow(2),
        "scaled_dot_product_attention": lambda x: nn.functional.scaled_dot_product_attention(
            x.unsqueeze(0), x.unsqueeze(0), x.unsqueeze(0)
        ),
        **{name: lambda x, n=name: getattr(x, n)(0) for name in ("cumsum", "log_softmax", "prod")},
        **{name: lambda x, n=name: getattr(x, n)() for name in ("exp", "log", "rsqrt", "sum")},
        "norm": torch.norm,
        "softmax": lambda x: x.softmax(0),
    }
    assert calls.keys() == LOWER | SINGLE

    def dtypes() -> dict[tuple[str, torch.dtype], torch.dtype]:
        given = [
            torch.ones(2, 2, dtype=dtype, device=CUDA) for dtype in (torch.float32, torch.bfloat16)
        ]
        return {(name, x.dtype): call(x).dtype for name, call in calls.items() for x in given}

    with fake_training(), autocast():
        ours = dtypes()
    with FakeTensorMode(), cuda_autocast():
        assert dtypes() == ours
