from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from t3d.objectives import Context, Distributions, LossTokens, Predictions, read


def tokens(sequence: list[int], num_sequences: int) -> LossTokens:
    zeros = torch.zeros(len(sequence)).long()
    return LossTokens(
        target=zeros,
        sequence=torch.tensor(sequence).long(),
        view=zeros,
        position=zeros,
        block=zeros,
        weight=zeros.float(),
        masked=zeros == 0,
        num_sequences=num_sequences,
        num_views=1,
        num_response_tokens=torch.ones(num_sequences, dtype=torch.int64),
    )


def test_sums_and_means_by_sequence():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    some = tokens([2, 0, 2, 2], 4)
    assert some.sequence_sum(values).tolist() == [2, 0, 13, 0]
    assert some.sequence_mean(values).tolist() == pytest.approx([2, 0, 13 / 3, 0])
    none = tokens([], 2)
    assert none.sequence_mean(torch.zeros(0)).tolist() == [0, 0]


def test_distributions_are_a_softmax():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predicted, expected = Distributions(logits), logits.log_softmax(-1)
    ids = torch.tensor([0, 6, 3, 3])
    torch.testing.assert_close(predicted.log_probs, expected)
    torch.testing.assert_close(predicted.log_prob(ids), expected[torch.arange(4), ids])
    assert torch.equal(predicted.argmax(), logits.argmax(-1))


@given(st.integers(0, 6), st.integers(1, 3), st.booleans())
def test_gradients_of_log_probs_from_hidden_states_are_those_of_a_softmax(
    num: int, num_ids: int, trains_head: bool
):
    """Of K tokens a position at once, the same ones among them."""
    generator = torch.Generator().manual_seed(num)
    hidden = torch.randn(num, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    weight.requires_grad_(trains_head)
    ids = torch.randint(0, 5, (num_ids, num), generator=generator)
    factors = torch.randn(num_ids, num, generator=generator, dtype=torch.float64)
    expected = (hidden @ weight.T).log_softmax(-1).gather(-1, ids.T).T
    predictions = Predictions.of_hidden(hidden, weight)
    assert predictions.vocab_size == 5
    [actual] = read(lambda p, ids: (p.log_prob(*ids.T),), predictions, ids.T)
    assert actual.shape == ((num_ids, num) if num_ids > 1 else (num,))
    torch.testing.assert_close(actual.view(num_ids, num), expected)
    leaves = [hidden, weight] if trains_head else [hidden]
    grads = [
        torch.autograd.grad((o * factors).sum(), leaves)
        for o in (actual.view_as(expected), expected)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_with_in_float32(dtype: torch.dtype):
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    predicted = Distributions(logits)
    assert predicted.log_probs.dtype == torch.float32
    torch.testing.assert_close(predicted.log_probs, logits.float().log_softmax(-1))


@given(st.integers(0, 9), st.integers(1, 70))
def test_a_chunk_is_any_number_of_tokens(num: int, chunk: int):
    """Values and gradients, of hidden states and of the head, also of no tokens at all."""
    generator = torch.Generator().manual_seed(num)
    hidden = torch.randn(num, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    other = torch.randn(num, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 5, (num,), generator=generator)
    seen: list[int] = []

    def function(p: Distributions, ids: Tensor, q: Distributions) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(max(p.logits.numel(), q.logits.numel()))
        return p.log_prob(ids), p.entropy(0.5) * q.log_prob(ids), p.argmax()

    results = []
    for limit in (chunk, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("t3d.objectives.base.CHUNK_LOGITS", limit)
            student = Predictions(hidden, lambda rows: rows @ head.T, 7)
            out = read(function, student, ids, Predictions.of_logits(other))
            assert max(seen) <= max(7, limit)
            total = (out[0] - 2 * out[1]).sum()
            results.append((*out, *torch.autograd.grad(total, (hidden, head))))
            assert max(seen) <= max(7, limit)
        seen.clear()
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=0, atol=1e-12)


def test_some_predictions_and_those_without_gradient():
    hidden = torch.eye(3, requires_grad=True)
    head = torch.nn.Linear(3, 4)
    predictions = Predictions(hidden, head, 4)
    chosen = torch.tensor([True, False, True])

    def logits(p: Distributions) -> tuple[Tensor]:
        return (p.logits,)

    assert torch.equal(read(logits, predictions[chosen])[0], head(hidden[chosen]))
    [frozen] = read(logits, predictions.detach())
    assert torch.equal(frozen, head(hidden))
    assert not frozen.requires_grad


def test_every_model_runs_at_most_once_and_only_if_asked():
    calls: list[str] = []
    weight = torch.ones(1, 3, requires_grad=True)

    def run(name: str) -> Predictions:
        calls.append(name)
        assert torch.is_grad_enabled() == (name == "student")
        return Predictions.of_logits(weight * 2)

    context = Context(
        tokens([0], 1),
        student=lambda: run("student"),
        reference=lambda: run("reference"),
        teacher=lambda: run("teacher"),
        sample_keys=torch.zeros(1).long(),
    )
    assert calls == []
    assert context.student is context.student
    assert calls == ["student"]
    assert context.reference is context.reference
    assert calls == ["student", "reference"]
    assert context.teacher is context.teacher
    assert calls == ["student", "reference", "teacher"]
    assert context.student.hidden.requires_grad
    assert not context.teacher.hidden.requires_grad
    assert not context.reference.hidden.requires_grad


def test_a_method_without_a_frozen_model_cannot_ask_for_one():
    context = Context(
        tokens([0], 1),
        student=lambda: Predictions.of_logits(torch.zeros(1, 3)),
        sample_keys=torch.zeros(1).long(),
    )
    with pytest.raises(AssertionError, match="did not ask for a reference"):
        _ = context.reference
    with pytest.raises(AssertionError, match="did not ask for a teacher"):
        _ = context.teacher
