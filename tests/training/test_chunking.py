"""What is computed in pieces, or once more in the backward pass, comes out the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from t3d.models import LanguageModel, wrap
from t3d.testing import tiny
from t3d.training.config import TrainingConfig
from t3d.training.run import fit
from t3d.training.trainer import DiffusionTrainer
from tests.training.conftest import count_projections
from tests.training.test_packing import ALL, same, step, trainer

assert trainer  # the fixture

Weights = Callable[[LanguageModel], dict[str, Tensor]]
VOCABULARY = 151_936


@pytest.mark.parametrize("trainer", list(ALL), indirect=True)
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    trainer: DiffusionTrainer, monkeypatch: pytest.MonkeyPatch
):
    rows: Any = trainer.train_dataset
    rows = [rows[i] for i in range(3)]
    expected = step(trainer, rows)
    [heads] = count_projections(monkeypatch, trainer.lm.model)
    # Five tokens a chunk.
    monkeypatch.setattr("t3d.objectives.base.CHUNK_LOGITS", 5 * trainer.vocabulary.size + 1)
    same(step(trainer, rows), expected)
    assert max(heads) == 5
    assert len(heads) > 4


class Largest(TorchDispatchMode):
    """The most elements that a tensor had, of those that are no weights' size."""

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.weights = weights
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.numel() != self.weights:
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["sft", "t3d", "t3d_exact", "dparallel", "cdlm"])
def test_no_tensor_holds_the_logits_of_all_loss_tokens(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """Forward and backward, at the vocabulary of SDAR."""
    limit = 8 * VOCABULARY
    monkeypatch.setattr("t3d.objectives.base.CHUNK_LOGITS", limit)
    model = tiny(vocab_size=VOCABULARY, dtype=torch.float32, tie_word_embeddings=True)
    # Its tokenizer names a mask of its own.
    model.config.mask_token_id = None
    lm = wrap(model, bench.tokenizer, "wide")
    settings = TrainingConfig(block_sizes=[4])
    trainer = DiffusionTrainer(lm, ALL[name], bench.rows(64), settings, tmp_path)
    head = model.get_output_embeddings()
    assert head is not None
    weight = head.weight
    with Largest(weight.numel()) as largest:
        step(trainer, bench.rows(4))
    assert limit // 2 < largest.numel <= limit


def config(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "steps": 2,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
    }
    return TrainingConfig(**{**settings, **changes})


@pytest.mark.parametrize("name", ["t3d", "cdlm"])
def test_activation_checkpointing_changes_no_weight(
    bench: Any, weights: Weights, tmp_path: Path, name: str
):
    results, passes = [], []
    for on in (False, True):
        lm, count = bench.model(), []
        lm.model.get_submodule("model.layers.0.self_attn.q_proj").register_forward_hook(
            lambda module, args, out, count=count: count.append(module.training)
        )
        fit(
            lm,
            ALL[name],
            bench.rows(4),
            config(activation_checkpointing=on),
            tmp_path / str(on),
            progress=False,
        )
        results.append(weights(lm))
        # The frozen models are copies, hook and all.
        passes.append(sum(count))
    assert passes == [4, 8]
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=0, atol=1e-9)
