"""T3D's objective against plain Python, and the identities that its theory promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from t3d.objectives import Context, CrossEntropy, LossTokens, Predictions, TrajectoryDDO

Gradient = Callable[[Tensor, Tensor], Tensor]
FAKES: tuple[Literal["argmax", "sample", "exact"], ...] = ("argmax", "sample", "exact")


def slow_ddo(
    toy: Any, fake_ids: list[int] | None, alpha: float, beta: float
) -> tuple[list[float], list[float], list[float]]:
    """Loss, real and fake margin of every sequence; the exact expectation without `fake_ids`."""
    student, reference = toy.log_probs(toy.student), toy.log_probs(toy.reference)
    target = toy.tokens.target.tolist()
    real = [s[x] - r[x] for s, r, x in zip(student, reference, target, strict=True)]
    if fake_ids is None:
        fake = [
            math.fsum(math.exp(q) * (p - q) for p, q in zip(s, r, strict=True))
            for s, r in zip(student, reference, strict=True)
        ]
    else:
        fake = [s[y] - r[y] for s, r, y in zip(student, reference, fake_ids, strict=True)]
    real, fake = toy.mean_by_sequence(real), toy.mean_by_sequence(fake)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    loss = [
        -math.log(sigmoid(beta * a)) - alpha * math.log(1 - sigmoid(beta * b))
        for a, b in zip(real, fake, strict=True)
    ]
    return loss, real, fake


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.1), (1.0, 1.0), (0.0, 2.0)])
@pytest.mark.parametrize("fake", ["argmax", "exact"])
def test_ddo_is_equation_7(toy: Any, alpha: float, beta: float, fake: Literal["argmax", "exact"]):
    ids = [row.index(max(row)) for row in toy.reference.tolist()] if fake == "argmax" else None
    expected, real, margin = slow_ddo(toy, ids, alpha, beta)
    objective = TrajectoryDDO(alpha=alpha, beta=beta, path_weight=0, fake=fake)
    loss, metrics = objective(toy.context(toy.student))
    assert loss.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(metrics["ddo"]) == pytest.approx(sum(expected) / 4)
    assert float(metrics["real_margin"]) == pytest.approx(sum(real) / 4)
    assert float(metrics["fake_margin"]) == pytest.approx(sum(margin) / 4)


def test_path_consistency_is_equation_8(toy: Any):
    table = toy.log_probs(toy.student)
    rows = zip(table, toy.tokens.target.tolist(), toy.tokens.weight.tolist(), strict=True)
    expected = toy.mean_by_sequence([-w * row[t] for row, t, w in rows])
    _, metrics = TrajectoryDDO()(toy.context(toy.student))
    assert float(metrics["path"]) == pytest.approx(sum(expected) / 4)
    without = toy.loss(TrajectoryDDO(path_weight=0), toy.student)
    with_path = toy.loss(TrajectoryDDO(path_weight=0.3), toy.student)
    difference = (with_path - without) / 0.3
    assert difference.tolist() == pytest.approx(expected, abs=1e-12)


def test_agreement_is_the_share_of_equal_first_choices(toy: Any):
    same = [
        a.index(max(a)) == b.index(max(b))
        for a, b in zip(toy.student.tolist(), toy.reference.tolist(), strict=True)
    ]
    assert 0 < sum(same) < 6
    _, metrics = TrajectoryDDO()(toy.context(toy.student))
    assert float(metrics["reference_agreement"]) == pytest.approx(sum(same) / 6)
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("fake", FAKES)
def test_gradcheck(toy: Any, fake: Literal["argmax", "sample", "exact"]):
    objective = TrajectoryDDO(alpha=0.7, beta=0.9, fake=fake)
    assert torch.autograd.gradcheck(lambda logits: toy.loss(objective, logits), toy.student)


@pytest.mark.parametrize("fake", FAKES)
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.1), (1.0, 1.0), (2.0, 0.3)])
def test_at_the_reference_the_loss_is_1_plus_alpha_times_ln_2(
    toy: Any, fake: Literal["argmax", "sample", "exact"], alpha: float, beta: float
):
    objective = TrajectoryDDO(alpha=alpha, beta=beta, path_weight=0, fake=fake)
    loss, metrics = objective(toy.context(toy.student, toy.student.detach()))
    assert loss.tolist() == pytest.approx([(1 + alpha) * math.log(2)] * 4, abs=1e-12)
    assert float(metrics["real_margin"]) == 0
    assert float(metrics["reference_agreement"]) == 1


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.1), (1.0, 1.0)])
def test_the_gradient_at_the_reference_pulls_to_real_and_away_from_fake(
    toy: Any, gradient: Gradient, alpha: float, beta: float
):
    student = toy.student
    objective = TrajectoryDDO(alpha=alpha, beta=beta, path_weight=0)
    actual = gradient(toy.loss(objective, student, student.detach()), student)

    def mean_log_prob(ids: Tensor) -> Tensor:
        chosen = student.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        return toy.tokens.sequence_mean(chosen)

    real = gradient(mean_log_prob(toy.tokens.target), student)
    fake = gradient(mean_log_prob(student.argmax(-1)), student)
    torch.testing.assert_close(actual, -beta / 2 * real + alpha * beta / 2 * fake)
    assert fake.norm() > 0.1


def test_exact_fakes_have_no_gradient_at_the_reference(toy: Any, gradient: Gradient):
    student = toy.student
    with_fake = TrajectoryDDO(alpha=5.0, path_weight=0, fake="exact")
    without = TrajectoryDDO(alpha=0.0, path_weight=0, fake="exact")
    torch.testing.assert_close(
        gradient(toy.loss(with_fake, student, student.detach()), student),
        gradient(toy.loss(without, student, student.detach()), student),
        atol=1e-12,
        rtol=0,
    )


def test_exact_fakes_with_a_refresh_at_every_step_are_naive_td_times_half_beta(
    toy: Any, gradient: Gradient
):
    beta, rate = 0.1, 3.0
    objective = TrajectoryDDO(beta=beta, path_weight=0, fake="exact")
    ddo, naive = (toy.student.detach().clone().requires_grad_() for _ in range(2))
    for _ in range(20):
        step = gradient(toy.loss(objective, ddo, ddo.detach()), ddo)
        ddo = (ddo.detach() - rate * step).requires_grad_()
        step = gradient(toy.loss(CrossEntropy(), naive), naive)
        naive = (naive.detach() - rate * beta / 2 * step).requires_grad_()
    torch.testing.assert_close(ddo, naive, atol=1e-12, rtol=0)
    assert (ddo - toy.student).abs().max() > 0.5


def test_the_exact_fake_margin_is_minus_the_divergence_from_the_reference(toy: Any):
    student, reference = toy.student.log_softmax(-1), toy.reference.log_softmax(-1)
    divergence = (reference.exp() * (reference - student)).sum(-1)
    _, metrics = TrajectoryDDO(fake="exact")(toy.context(toy.student))
    expected = -toy.tokens.sequence_mean(divergence).mean()
    torch.testing.assert_close(metrics["fake_margin"], expected.detach())
    assert expected < 0


def drawn(reference: Tensor, keys: Tensor) -> Tensor:
    """The ids that `fake='sample'` drew, read off losses that tell them apart."""
    num, size = len(keys), len(reference)
    tokens = LossTokens(
        target=torch.zeros(num, dtype=torch.int64),
        sequence=torch.arange(num),
        view=torch.zeros(num, dtype=torch.int64),
        position=torch.arange(num),
        block=torch.arange(num),
        weight=torch.ones(num),
        masked=torch.ones(num, dtype=torch.bool),
        num_sequences=num,
        num_views=1,
        num_response_tokens=torch.ones(num, dtype=torch.int64),
    )
    student = (reference + torch.arange(size)).expand(num, size)
    context = Context(
        tokens,
        student=lambda: Predictions.of_logits(student),
        reference=lambda: Predictions.of_logits(reference.expand(num, size)),
        sample_keys=keys,
    )
    ddo = TrajectoryDDO(alpha=1.0, beta=1.0, path_weight=0, fake="sample")
    loss, _ = ddo(context)
    ratio = student[0].log_softmax(-1) - reference.log_softmax(-1)
    possible = -(ratio[0].sigmoid().log()) - (-ratio).sigmoid().log()
    distance = (loss[:, None] - possible).abs()
    assert distance.min(-1).values.max() < 1e-9
    return distance.argmin(-1)


def test_sampled_fakes_follow_the_reference():
    num = 20_000
    reference = torch.tensor([0.2, 0.0, 0.5, 0.05, 0.25, 0.0], dtype=torch.float64)
    counts = drawn(reference.clamp(min=1e-300).log(), torch.arange(num)).bincount(minlength=6)
    assert counts[reference == 0].sum() == 0
    deviation = (num * reference * (1 - reference)).sqrt()
    assert ((counts - num * reference).abs() <= 5 * deviation).all()


def test_a_sampled_fake_depends_on_its_own_key_alone():
    reference, keys = torch.arange(5, dtype=torch.float64) / 3, torch.arange(50) * 17
    assert torch.equal(drawn(reference, keys)[20:], drawn(reference, keys[20:]))


@pytest.mark.parametrize("fake", FAKES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_margins_stay_finite(
    toy: Any, fake: Literal["argmax", "sample", "exact"], dtype: torch.dtype
):
    """log(1 - sigmoid(x)) would be infinite here."""
    objective = TrajectoryDDO(beta=10.0, fake=fake)
    for scale in (1e4, -1e4):
        student = (scale * toy.student).detach().to(dtype).requires_grad_()
        loss, metrics = objective(toy.context(student, (-scale * toy.student).detach().to(dtype)))
        loss.sum().backward()
        assert loss.isfinite().all()
        assert loss.max() > 1e3
        assert student.grad is not None
        assert student.grad.isfinite().all()
        assert all(value.isfinite() for value in metrics.values())


def test_a_sequence_without_loss_tokens_pulls_nowhere(toy: Any, gradient: Gradient):
    loss = toy.loss(TrajectoryDDO(), toy.student)
    assert loss[1].item() == pytest.approx(1.5 * math.log(2))
    assert not gradient(loss[1], toy.student).any()


def test_an_unknown_fake_is_an_error():
    with pytest.raises(ValueError, match="fake must be one of argmax, sample, exact, got 'max'"):
        TrajectoryDDO(fake="max")  # type: ignore[arg-type]


REDUCTIONS: list[tuple[Literal["mean", "sum"], Literal["sequence", "block"]]] = [
    ("mean", "sequence"),
    ("sum", "sequence"),
    ("mean", "block"),
    ("sum", "block"),
]


@pytest.mark.parametrize(("reduction", "over"), REDUCTIONS)
def test_the_log_ratio_is_reduced_over_sequences_or_blocks(
    toy: Any, reduction: Literal["mean", "sum"], over: Literal["sequence", "block"]
):
    """One token of the first sequence is visible, and takes no part in D."""
    masked = torch.tensor([True, True, True, True, True, True])
    masked[1] = False
    toy = replace(toy, tokens=replace(toy.tokens, masked=masked))
    alpha, beta = 0.7, 0.9
    student, reference = toy.log_probs(toy.student), toy.log_probs(toy.reference)
    best = [row.index(max(row)) for row in reference]
    terms: dict[int, list[float]] = {0: [], 2: [], 3: []}
    groups: dict[tuple[int, int], list[int]] = {}
    for i, sequence in enumerate(toy.tokens.sequence.tolist()):
        block = int(toy.tokens.block[i]) if over == "block" else 0
        groups.setdefault((sequence, block), []).extend([i] if masked[i] else [])
    for (sequence, _), members in groups.items():
        margins = []
        for ids in (toy.tokens.target.tolist(), best):
            total = math.fsum(student[i][ids[i]] - reference[i][ids[i]] for i in members)
            margins.append(total / len(members) if reduction == "mean" else total)
        real, fake = (1 / (1 + math.exp(-beta * margin)) for margin in margins)
        terms[sequence].append(-math.log(real) - alpha * math.log(1 - fake))
    objective = TrajectoryDDO(alpha=alpha, beta=beta, path_weight=0, reduction=reduction, over=over)
    loss = toy.loss(objective, toy.student)
    expected = [math.fsum(terms[s]) / len(terms[s]) for s in (0, 2, 3)]
    assert loss[[0, 2, 3]].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda logits: toy.loss(objective, logits), toy.student)


@pytest.mark.parametrize(("reduction", "over"), REDUCTIONS)
@pytest.mark.parametrize("fake", FAKES)
def test_at_the_reference_every_reduction_is_1_plus_alpha_times_ln_2(
    toy: Any,
    reduction: Literal["mean", "sum"],
    over: Literal["sequence", "block"],
    fake: Literal["argmax", "sample", "exact"],
):
    objective = TrajectoryDDO(path_weight=0, reduction=reduction, over=over, fake=fake)
    loss = toy.loss(objective, toy.student, toy.student.detach())
    assert loss[[0, 2, 3]].tolist() == pytest.approx([1.5 * math.log(2)] * 3, abs=1e-12)


def test_unknown_reductions_are_errors():
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, got 'max'"):
        TrajectoryDDO(reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="over must be one of sequence, block, got 'batch'"):
        TrajectoryDDO(over="batch")  # type: ignore[arg-type]
