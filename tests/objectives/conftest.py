"""A toy batch and a plain Python view of it, shared by the tests of objectives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from t3d.objectives import Context, LossTokens, Objective, Predictions

SEQUENCE = [0, 0, 0, 2, 2, 3]
"""Sequence 1 has no loss tokens."""


@dataclass(frozen=True)
class Toy:
    """Four sequences, six loss tokens, five words; float64."""

    student: Tensor
    reference: Tensor
    tokens: LossTokens
    keys: Tensor

    def context(self, student: Tensor, reference: Tensor | None = None) -> Context:
        chosen = self.reference if reference is None else reference
        return Context(
            self.tokens,
            student=lambda: Predictions.of_logits(student),
            reference=lambda: Predictions.of_logits(chosen),
            sample_keys=self.keys,
        )

    def loss(
        self, objective: Objective, student: Tensor, reference: Tensor | None = None
    ) -> Tensor:
        return objective(self.context(student, reference))[0]

    def log_probs(self, logits: Tensor) -> list[list[float]]:
        """Log-softmax by hand, [M][V]."""
        out = []
        for row in logits.tolist():
            total = math.fsum(math.exp(x) for x in row)
            out.append([x - math.log(total) for x in row])
        return out

    def mean_by_sequence(self, values: list[float]) -> list[float]:
        groups: list[list[float]] = [[], [], [], []]
        for sequence, value in zip(SEQUENCE, values, strict=True):
            groups[sequence].append(value)
        return [math.fsum(group) / len(group) if group else 0.0 for group in groups]


@pytest.fixture
def toy() -> Toy:
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(len(SEQUENCE), 5, generator=generator, dtype=torch.float64)

    tokens = LossTokens(
        target=torch.tensor([0, 4, 2, 2, 3, 1]),
        sequence=torch.tensor(SEQUENCE),
        view=torch.zeros(6, dtype=torch.int64),
        position=torch.tensor([2, 3, 4, 9, 11, 5]),
        block=torch.tensor([0, 0, 1, 2, 2, 1]),
        weight=torch.tensor([1.0, 0.5, 0.25, 0.75, 1.0, 0.125]),
        masked=torch.ones(6, dtype=torch.bool),
        num_sequences=4,
        num_views=1,
        num_response_tokens=torch.tensor([8, 3, 5, 4]),
    )
    return Toy(normal().requires_grad_(), normal(), tokens, torch.arange(len(SEQUENCE)) + 11)


@pytest.fixture
def gradient() -> Callable[[Tensor, Tensor], Tensor]:
    """The gradient of a loss summed over its sequences."""
    return lambda loss, logits: torch.autograd.grad(loss.sum(), logits)[0]
