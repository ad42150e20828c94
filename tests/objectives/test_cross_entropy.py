from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from t3d.objectives import CrossEntropy, Nelbo


def surprises(toy: Any) -> list[float]:
    table = toy.log_probs(toy.student)
    return [-row[t] for row, t in zip(table, toy.tokens.target.tolist(), strict=True)]


def test_cross_entropy_is_the_mean_over_a_sequences_loss_tokens(toy: Any):
    loss, metrics = CrossEntropy()(toy.context(toy.student))
    assert loss.tolist() == pytest.approx(toy.mean_by_sequence(surprises(toy)), abs=1e-12)
    assert loss[1] == 0
    assert float(metrics["cross_entropy"]) == pytest.approx(math.fsum(surprises(toy)) / 6)


def test_the_nelbo_weights_tokens_and_divides_by_the_response(toy: Any):
    loss, metrics = Nelbo()(toy.context(toy.student))
    weighted = [w * s for w, s in zip(toy.tokens.weight.tolist(), surprises(toy), strict=True)]
    # Sequences 0, 2 and 3 hold the tokens 0-2, 3-4 and 5.
    expected = [sum(weighted[:3]) / 8, 0, sum(weighted[3:5]) / 5, weighted[5] / 4]
    assert loss.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(metrics["cross_entropy"]) == pytest.approx(math.fsum(surprises(toy)) / 6)


@pytest.mark.parametrize("objective", [CrossEntropy(), Nelbo()])
def test_gradients_and_metrics(toy: Any, objective: CrossEntropy | Nelbo):
    assert torch.autograd.gradcheck(lambda logits: toy.loss(objective, logits), toy.student)
    _, metrics = objective(toy.context(toy.student))
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert not objective.needs_reference
