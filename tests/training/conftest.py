"""One tokenizer and small models around it, shared by all tests of training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_row
from t3d.models import LanguageModel, wrap
from t3d.noising import Noiser, NoiserInput, View
from t3d.objectives import base
from t3d.tasks import get_task
from t3d.tasks.tokenizer import MASK_TOKEN, train_tokenizer
from t3d.testing import tiny


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    examples = get_task("mini_gsm").examples("train", 100)
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    return train_tokenizer(texts, vocab_size=320)


@dataclass
class Recorder:
    """A noiser that writes down what another one does."""

    noiser: Noiser
    batches: list[TrajectoryBatch] = field(default_factory=list)
    block_sizes: list[int] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    views: list[list[View]] = field(default_factory=list)

    def __call__(self, given: NoiserInput) -> list[View]:
        views = self.noiser(given)
        assert self.num_views in (None, len(views))
        self.batches.append(given.batch)
        self.block_sizes.append(given.layout.block_size)
        self.progress.append(given.progress)
        self.views.append(views)
        return views

    @property
    def num_views(self) -> int | None:
        return self.noiser.num_views

    @property
    def num_loss_tokens(self) -> list[int]:
        return [sum(int(view.loss_mask.sum()) for view in views) for views in self.views]


@dataclass(frozen=True)
class Bench:
    """Fresh models, always with the same weights, and random trajectories."""

    tokenizer: PreTrainedTokenizerBase

    def model(self, **config: Any) -> LanguageModel:
        settings = {"seed": 1, "initializer_range": 0.2, "mask_token_id": None, **config}
        mask = settings.pop("mask_token_id")
        model = tiny(vocab_size=len(self.tokenizer), **settings)
        model.config.mask_token_id = mask
        return wrap(model, self.tokenizer, "tiny")

    def trajectories(
        self, num: int, *, block_size: int = 4, num_blocks: int = 4, seed: int = 0
    ) -> list[Trajectory]:
        """Prompts of 1 to 9 tokens and up to `num_blocks` blocks, in any order of decoding."""
        rng, mask = random.Random(seed), self.tokenizer.get_vocab()[MASK_TOKEN]
        out = []
        for number in range(num):
            prompt = [rng.randrange(256) for _ in range(rng.randint(1, 9))]
            length = block_size * rng.randint(1, num_blocks) - len(prompt) % block_size
            out.append(
                Trajectory(
                    prompt_id=str(number),
                    prompt_ids=prompt,
                    response_ids=[rng.randrange(256) for _ in range(length)],
                    initial_ids=[mask] * length,
                    step_map=[rng.randrange(block_size) for _ in range(length)],
                    log_probs=[-0.5] * length,
                    num_response_tokens=max(1, length - rng.randrange(block_size)),
                    finish_reason="length",
                    block_size=block_size,
                )
            )
        return out

    def rows(self, num: int, **settings: Any) -> list[dict[str, Any]]:
        """Rows of trajectories with rewards, as if their groups had two responses."""
        found = enumerate(self.trajectories(num, **settings))
        rewards = ({"advantage": 1.0 - 2 * (i % 2), "right": 1.0 - i % 2} for i in range(num))
        pairs = zip(found, rewards, strict=True)
        return [training_row(t, i, average_length=8.0, **own) for (i, t), own in pairs]


@pytest.fixture
def bench(tokenizer: PreTrainedTokenizerBase) -> Bench:
    return Bench(tokenizer)


@pytest.fixture
def weights() -> Callable[[LanguageModel], dict[str, torch.Tensor]]:
    return lambda lm: {k: v.detach().clone() for k, v in lm.model.state_dict().items()}


def count_projections(monkeypatch: pytest.MonkeyPatch, *models: torch.nn.Module) -> list[list[int]]:
    """For each model the rows of every product with its head; one product a chunk of logits."""
    heads = [model.get_submodule("lm_head").weight for model in models]
    rows: list[list[int]] = [[] for _ in models]
    project = base._Projection.apply

    def projected(hidden: Tensor, weight: Tensor) -> Any:
        for head, own in zip(heads, rows, strict=True):
            if weight is head:
                own.append(len(hidden))
        return project(hidden, weight)

    monkeypatch.setattr(base._Projection, "apply", projected)
    return rows
