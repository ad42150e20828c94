"""CDLM's objective against plain Python, on two sequences, three views and five words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from t3d.objectives import Consistency, Context, LossTokens, Predictions

# (sequence, view, position), in order; b masks a part of what a masks.
PLACES = [
    *[(0, 0, p) for p in (4, 5, 7, 9)],
    *[(0, 1, p) for p in (5, 9)],
    *[(0, 2, p) for p in (4, 6)],
    *[(1, 0, p) for p in (4, 5)],
    (1, 2, 5),
]
TARGET = [0, 1, 2, 3, 1, 3, 0, 4, 2, 1, 1]
WEIGHT = [1.0] * 6 + [2.0, 1.5] + [1.0] * 2 + [4.0]
NUM_RESPONSE = [6, 3]
STUDENT, TEACHER = (
    torch.randn(11, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for seed in (0, 1)
)


def loss_of(objective: Consistency, student: Tensor, num: int = 11) -> Tensor:
    sequence, view, position = torch.tensor(PLACES[:num]).T
    tokens = LossTokens(
        target=torch.tensor(TARGET[:num]),
        sequence=sequence,
        view=view,
        position=position,
        block=position // 4,
        weight=torch.tensor(WEIGHT[:num]),
        masked=torch.ones(num, dtype=torch.bool),
        num_sequences=2,
        num_views=3,
        num_response_tokens=torch.tensor(NUM_RESPONSE),
    )
    context = Context(
        tokens,
        student=lambda: Predictions.of_logits(student),
        teacher=lambda: Predictions.of_logits(TEACHER[:num]),
        sample_keys=torch.arange(num),
    )
    loss, metrics = objective(context)
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    return loss


def slow_loss(objective: Consistency, student: Tensor, frozen: Tensor) -> list[float]:
    """`frozen` are the logits of the student that state b is read from, without gradient."""

    def log_softmax(logits: Tensor) -> list[list[float]]:
        rows = logits.tolist()
        return [[x - math.log(math.fsum(map(math.exp, row))) for x in row] for row in rows]

    def kl(p: list[float], q: list[float]) -> float:
        return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))

    own, teacher, late = log_softmax(student), log_softmax(TEACHER), log_softmax(frozen)
    out = []
    for sequence in (0, 1):
        revealed, still, nelbo = [], [], 0.0
        for i, (row, view, position) in enumerate(PLACES):
            if row != sequence:
                continue
            if view == 0 and (row, 1, position) in PLACES:
                still.append(kl(late[PLACES.index((row, 1, position))], own[i]))
            elif view == 0:
                revealed.append(kl(teacher[i], own[i]))
            elif view == 2:
                nelbo -= WEIGHT[i] * own[i][TARGET[i]]
        out.append(
            math.fsum(revealed) / len(revealed)
            + objective.consistency_weight * math.fsum(still) / max(1, len(still))
            + objective.nelbo_weight * nelbo / NUM_RESPONSE[sequence]
        )
    return out


@pytest.mark.parametrize("objective", [Consistency(), Consistency(0.5, 0.0), Consistency(0.0, 2.0)])
def test_the_three_terms(objective: Consistency):
    expected = slow_loss(objective, STUDENT, STUDENT)
    assert loss_of(objective, STUDENT).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_by_finite_differences_stops_at_the_later_state():
    objective, student = Consistency(0.7, 0.3), STUDENT.clone().requires_grad_()
    loss_of(objective, student).sum().backward()
    step = 1e-5
    expected = torch.zeros_like(STUDENT)
    for i in range(11):
        for word in range(5):
            change = torch.zeros_like(STUDENT)
            change[i, word] = step
            up, down = (
                sum(slow_loss(objective, STUDENT + sign * change, STUDENT)) for sign in (1, -1)
            )
            expected[i, word] = (up - down) / (2 * step)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected, atol=1e-8, rtol=1e-6)
    assert not student.grad[4:6].any()


def test_a_student_that_is_the_teacher_is_only_pulled_by_consistency_and_the_nelbo():
    assert loss_of(Consistency(0.0, 0.0), TEACHER).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert loss_of(Consistency(1.0, 0.0), TEACHER)[0] > 0.1
