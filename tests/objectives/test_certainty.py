from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from t3d.objectives import CertaintyForcing

VIEW = [0, 1, 1, 0, 1, 0]


@pytest.fixture
def two_views(toy: Any) -> Any:
    """The first, fourth and last prediction are right: one is right in a view of its own."""
    right = torch.tensor([True, False, False, True, False, True])
    best, worst = toy.student.argmax(-1).detach(), toy.student.argmin(-1).detach()
    tokens = replace(
        toy.tokens,
        view=torch.tensor(VIEW),
        num_views=2,
        target=torch.where(right, best, worst),
    )
    return replace(toy, tokens=tokens)


@pytest.mark.parametrize("views", ["both", "first"])
@pytest.mark.parametrize(("beta", "temperature", "scale"), [(1.0, 0.5, 1.0), (2.0, 1.5, 0.25)])
def test_certainty_forcing_view_by_view(
    two_views: Any, beta: float, temperature: float, scale: float, views: Any
):
    toy = two_views
    objective = CertaintyForcing(
        beta=beta, temperature=temperature, scale=scale, entropy_views=views
    )
    loss, metrics = objective(toy.context(toy.student))
    table = toy.log_probs(toy.student)
    tempered = toy.log_probs(toy.student.detach() / temperature)
    target = toy.tokens.target.tolist()
    expected = []
    for sequence in range(4):
        total = 0.0
        for view in (0, 1):
            places = [i for i in range(6) if toy.tokens.sequence[i] == sequence and VIEW[i] == view]
            right = [i for i in places if max(table[i]) == table[i][target[i]]]
            if places:
                total -= math.fsum(table[i][target[i]] for i in places) / len(places)
            if right and (view == 0 or views == "both"):
                entropies = [-math.fsum(math.exp(x) * x for x in tempered[i]) for i in right]
                total += beta * math.fsum(entropies) / len(right)
        expected.append(scale * total)
    assert loss.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(metrics["accuracy"]) == 0.5


def test_gradcheck(two_views: Any):
    toy, objective = two_views, CertaintyForcing(beta=1.5)
    assert torch.autograd.gradcheck(lambda logits: toy.loss(objective, logits), toy.student)


def test_wrong_predictions_are_not_made_certain(two_views: Any):
    toy = two_views
    [plain, forced] = (
        torch.autograd.grad(toy.loss(CertaintyForcing(beta=b), toy.student).sum(), toy.student)[0]
        for b in (0.0, 3.0)
    )
    changed = (plain - forced).abs().amax(-1) > 1e-9
    assert changed.tolist() == [True, False, False, True, False, True]


def test_a_temperature_is_positive():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        CertaintyForcing(temperature=0)
