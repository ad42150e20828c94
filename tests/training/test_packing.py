"""How sequences are laid into rows, and in which order, changes no loss and no gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t3d.core.blocks import Coordinates
from t3d.core.trajectory import TrajectoryBatch
from t3d.models import LanguageModel
from t3d.models.attention import in_one_dtype
from t3d.testing import tiny
from t3d.training import forward
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.forward import attending
from t3d.training.methods import METHODS, Method, build_method
from t3d.training.run import fit
from t3d.training.trainer import DiffusionTrainer

ALL: dict[str, Method] = {
    **METHODS,
    "t3d_upstream": build_method(MethodConfig("t3d", compat="upstream")),
    "t3d_exact": build_method(MethodConfig("t3d", objective={"fake": "exact"})),
    "t3d_sample_block": build_method(
        MethodConfig("t3d", objective={"fake": "sample", "over": "block"})
    ),
}
Step = Callable[[list[dict[str, Any]]], list[Tensor]]


@pytest.fixture
def trainer(bench: Any, tmp_path: Path, request: pytest.FixtureRequest) -> DiffusionTrainer:
    """Of a method, with a student that has left its reference and teacher."""
    lm: LanguageModel = bench.model()
    settings = TrainingConfig(block_sizes=[4])
    trainer = DiffusionTrainer(lm, ALL[request.param], bench.rows(64), settings, tmp_path)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in lm.model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight += 0.02 * noise
    return trainer


def step(trainer: DiffusionTrainer, rows: list[dict[str, Any]]) -> list[Tensor]:
    """The loss and the gradient of every weight."""
    model = trainer.lm.model
    model.zero_grad()
    batch = TrajectoryBatch.collate(rows, trainer.lm.pad_token_id)
    number = torch.tensor(len(rows))
    loss = trainer.compute_loss(model, batch.as_dict(), num_items_in_batch=number)
    loss.backward()
    grads = [weight.grad for weight in model.parameters()]
    assert all(grad is not None and grad.any() for grad in grads)
    return [loss.detach(), *(grad for grad in grads if grad is not None)]


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def unpacked(grid: Coordinates, width: int) -> tuple[Coordinates, Tensor]:
    """In place of `pack`: one padded sequence a row."""
    return grid, torch.arange(grid.position.numel()).view_as(grid.position)


@pytest.mark.parametrize("trainer", list(ALL), indirect=True)
def test_losses_and_gradients_are_those_of_padded_sequences(
    trainer: DiffusionTrainer, monkeypatch: pytest.MonkeyPatch
):
    """In rows of the longest sequence's width, in one row, and in another order."""
    rows: Any = trainer.train_dataset
    rows = [rows[i] for i in (5, 2, 9, 0, 7, 3)]
    seen: list[tuple[int, ...]] = []
    mask = forward.attention_mask

    def attention_mask(name: str, grid: Coordinates, keys: Coordinates, dtype: Any) -> object:
        seen.append(tuple(grid.position.shape))
        return mask(name, grid, keys, dtype)

    monkeypatch.setattr(forward, "attention_mask", attention_mask)
    results = [step(trainer, rows), step(trainer, rows[::-1])]
    with monkeypatch.context() as patch:
        patch.setattr(forward, "_row_width", lambda *args: 1 << 14)
        results.append(step(trainer, rows))
    with monkeypatch.context() as patch:
        patch.setattr(forward, "pack", unpacked)
        expected = step(trainer, rows)
    for result in results:
        same(result, expected)
    num_rows, widths = zip(*seen, strict=True)
    assert num_rows[0] == num_rows[1] < num_rows[3] == 6
    assert num_rows[2] == 1
    assert widths[0] <= widths[3] < widths[2]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("trainer", ["t3d", "cdlm"], indirect=True)
@torch.compiler.set_stance("force_eager")
# On a CPU it has no backward pass.
@torch.no_grad()
def test_flex_attention_in_one_row_is_dense_attention_in_several(trainer: DiffusionTrainer):
    rows: Any = trainer.train_dataset
    rows = [rows[i] for i in range(3)]
    batch = TrajectoryBatch.collate(rows, trainer.lm.pad_token_id).as_dict()
    losses = []
    for implementation in map(in_one_dtype, ("sdpa", "flex_attention")):
        for model in (trainer.lm.model, trainer.reference, trainer.teacher):
            if model is not None:
                model.set_attn_implementation(implementation)  # type: ignore[operator]
        number = torch.tensor(len(rows))
        losses.append(trainer.compute_loss(trainer.lm.model, batch, num_items_in_batch=number))
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["auto", "sdpa", "flex_attention"])
def test_models_attend_by_the_setting_in_a_step_and_as_before_after_it(attention: Any):
    models = [tiny(), tiny()]
    models[1].set_attn_implementation("eager")
    with attending(models, attention):
        inside = [model.config._attn_implementation for model in models]
    name = "sdpa" if attention == "auto" else attention
    assert inside == [in_one_dtype(name)] * 2
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager"]


def test_a_training_step_attends_by_the_setting(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str | None] = []

    def training_step(self: DiffusionTrainer, *args: Any, **kwargs: Any) -> Tensor:
        models: list[Any] = [self.lm.model, self.reference]
        seen.extend(model.config._attn_implementation for model in models)
        return torch.zeros(())

    monkeypatch.setattr(Trainer, "training_step", training_step)
    config = TrainingConfig(attention="flex_attention", steps=1, batch_size=4, micro_batch_size=4)
    lm = bench.model()
    fit(lm, ALL["t3d"], bench.rows(4), config, tmp_path, progress=False)
    assert seen == [in_one_dtype("flex_attention")] * 2
    assert lm.model.config._attn_implementation == "sdpa"


def test_an_unknown_attention_is_an_error():
    with pytest.raises(ValueError, match="attention must be one of auto, sdpa, flex_attention"):
        TrainingConfig(attention="flash")  # type: ignore[arg-type]


def test_under_autocast_attention_gets_one_dtype(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The norms of queries and keys give float32 there, and the projection of values bfloat16."""
    given: list[set[torch.dtype]] = []

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any):
        given.append({query.dtype, key.dtype, value.dtype})
        return sdpa_attention_forward(module, query, key, value, *args, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", attend)
    config = TrainingConfig(
        steps=1, batch_size=4, micro_batch_size=4, dtype="bfloat16", trainer={"use_cpu": True}
    )
    lm = bench.model(dtype=torch.float32)
    fit(lm, ALL["t3d"], bench.rows(4), config, tmp_path, progress=False)
    # Each layer of the student and of the reference.
    assert given == [{torch.bfloat16}] * 4
