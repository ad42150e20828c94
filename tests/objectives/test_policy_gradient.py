"""The clipped objective token by token, in plain Python, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from t3d.core.trajectory import TrajectoryBatch
from t3d.objectives import Context, PolicyGradient, Predictions

BANNED = (4,)
ADVANTAGE, RIGHT, LENGTH = [1.5, 0.0, -0.7, 0.4], [1.0, 0.0, 0.0, 1.0], 2.5


def context(toy: Any, student: Tensor, recorded: Tensor, start: Tensor | None = None) -> Context:
    """Recorded log-probabilities of the six loss tokens [6], at their places in the batch."""
    tokens = toy.tokens
    log_probs = torch.zeros(4, 12, dtype=torch.float64)
    log_probs[tokens.sequence, tokens.position] = recorded
    nothing = torch.zeros(4, 12, dtype=torch.int64)
    counts = torch.ones(4, dtype=torch.int64)
    batch = TrajectoryBatch(
        *(nothing, nothing, counts, counts, counts, nothing, counts),
        log_probs=log_probs,
        advantage=torch.tensor(ADVANTAGE, dtype=torch.float64),
        right=torch.tensor(RIGHT, dtype=torch.float64),
        average_length=torch.full((4,), LENGTH, dtype=torch.float64),
    )
    return Context(
        tokens,
        student=lambda: Predictions.of_logits(student),
        teacher=lambda: Predictions.of_logits(toy.reference if start is None else start),
        sample_keys=toy.keys,
        batch=batch,
        banned=BANNED,
    )


def log_probs(logits: Tensor, target: list[int]) -> list[float]:
    """Of the targets, among the ids that may be generated."""
    out = []
    for row, token in zip(logits.tolist(), target, strict=True):
        allowed = [x for i, x in enumerate(row) if i not in BANNED]
        out.append(row[token] - math.log(math.fsum(map(math.exp, allowed))))
    return out


@pytest.fixture
def allowed(toy: Any) -> Any:
    """The toy without its one banned target."""
    toy.tokens.target[toy.tokens.target == 4] = 3
    return toy


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_the_loss_is_that_of_its_equation(allowed: Any, average: Any) -> None:
    toy = allowed
    target, sequence = toy.tokens.target.tolist(), toy.tokens.sequence.tolist()
    own, start = log_probs(toy.student, target), log_probs(toy.reference, target)
    recorded = [p - shift for p, shift in zip(own, [0.5, -0.5, 0.1, 0.4, -0.6, 0.0], strict=True)]
    objective = PolicyGradient(0.2, 0.3, average, kl_weight=0.05, nll_weight=0.1)
    loss, metrics = objective(context(toy, toy.student, torch.tensor(recorded).double()))
    expected, num_clipped = [0.0] * 4, 0
    for s in range(4):
        places = [i for i in range(6) if sequence[i] == s]
        gains = []
        for i in places:
            ratio = math.exp(own[i] - recorded[i])
            clipped = min(max(ratio, 0.8), 1.3) * ADVANTAGE[s]
            num_clipped += clipped < ratio * ADVANTAGE[s]
            gains.append(min(ratio * ADVANTAGE[s], clipped))
            d = start[i] - own[i]
            expected[s] += 0.05 * (math.exp(d) - 1 - d) / LENGTH
            expected[s] -= 0.1 * RIGHT[s] * own[i] / LENGTH
        divisor = len(places) if average == "sequence" else LENGTH
        expected[s] -= math.fsum(gains) / divisor if places else 0.0
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)
    assert 0 < num_clipped < 6
    assert float(metrics["clip_share"]) == pytest.approx(num_clipped / 6)


def test_on_policy_the_gradient_is_the_advantage_times_that_of_the_log_probability(
    allowed: Any, gradient: Any
) -> None:
    """And the KL divergence from a start that the student equals has none."""
    toy = allowed
    recorded = torch.tensor(log_probs(toy.student, toy.tokens.target.tolist())).double()
    objective = PolicyGradient(average="token", kl_weight=3.0)
    loss, metrics = objective(context(toy, toy.student, recorded, toy.student.detach()))
    assert float(metrics["ratio"]) == pytest.approx(1, abs=1e-6)
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-9)
    logits = toy.student.index_fill(1, torch.tensor(BANNED), -torch.inf)
    log_prob = logits.log_softmax(-1).gather(1, toy.tokens.target[:, None])[:, 0]
    weight = torch.tensor(ADVANTAGE).double()[toy.tokens.sequence] / LENGTH
    plain = torch.autograd.grad(-(weight * log_prob).sum(), toy.student)[0]
    torch.testing.assert_close(gradient(loss, toy.student), plain, rtol=0, atol=1e-6)


def test_a_clipped_token_has_no_gradient(allowed: Any, gradient: Any) -> None:
    toy = allowed
    own = torch.tensor(log_probs(toy.student, toy.tokens.target.tolist())).double()
    advantage = torch.tensor(ADVANTAGE)[toy.tokens.sequence].double()
    # Far to the side that the advantage asks for, and then far to the other.
    for side, moves in ((1.0, False), (-1.0, True)):
        recorded = own - side * advantage.sign()
        loss, _ = PolicyGradient(kl_weight=0.0)(context(toy, toy.student, recorded))
        assert bool((gradient(loss, toy.student) != 0).any(1).all()) == moves


def test_gradcheck(allowed: Any) -> None:
    toy = allowed
    recorded = torch.tensor(log_probs(toy.reference, toy.tokens.target.tolist())).double()
    objective = PolicyGradient(clip_high=5.0, kl_weight=0.1, nll_weight=0.2)
    assert torch.autograd.gradcheck(
        lambda logits: objective(context(toy, logits, recorded))[0], toy.student
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"clip_low": 1.0}, "clip_low must lie in"), ({"average": "step"}, "average must be one of"),
     ({"kl_weight": -1.0}, "kl_weight must not be negative")],
)  # fmt: skip
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyGradient(**settings)
