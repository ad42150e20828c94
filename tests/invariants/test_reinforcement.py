"""A policy gradient is that of the decoder: its probabilities, and by enumeration its gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_row
from t3d.decoding.engine import BlockDecoder
from t3d.models import BlockDiffusionLM
from t3d.models.attention import attention_mask
from t3d.noising import NoiserInput, TrajectorySteps, Vocabulary
from t3d.objectives import Context, PolicyGradient, Predictions
from t3d.testing import tiny
from t3d.training.forward import assemble
from tests.invariants.test_training import MASK, MODEL, STOPS, requests, settings, trajectory


def objective_of(
    model: BlockDiffusionLM,
    items: Sequence[Trajectory],
    advantages: Sequence[float],
    objective: PolicyGradient,
    block_size: int,
    mask: int,
) -> tuple[Tensor, dict[str, Tensor], int]:
    """The losses and metrics of one training pass, and its number of loss tokens."""
    length = sum(t.num_response_tokens for t in items) / len(items)
    rows = [
        training_row(t, i, advantage=a, average_length=length)
        for i, (t, a) in enumerate(zip(items, advantages, strict=True))
    ]
    batch, layout = TrajectoryBatch.collate(rows, pad_token_id=0), BlockLayout(block_size)
    size = model.config.vocab_size
    keys = torch.arange(len(items))
    views = TrajectorySteps()(
        NoiserInput(batch, layout, keys, Vocabulary(size, mask, 0, size), 0.0)
    )
    inputs, tokens = assemble(batch, views, layout, "sdpa", torch.float64)
    logits = model(
        inputs.input_ids, inputs.attention_mask, inputs.position_ids, select=inputs.select
    ).logits

    def predictions() -> Predictions:
        return Predictions.of_logits(logits)

    context = Context(
        tokens, student=predictions, teacher=predictions, sample_keys=tokens.position, batch=batch,
        banned=(mask,),
    )  # fmt: skip
    recorded = batch.log_probs[tokens.sequence, tokens.position]
    allowed = logits.index_fill(-1, torch.tensor([mask]), -torch.inf).log_softmax(-1)
    found = allowed.gather(1, tokens.target[:, None])[:, 0]
    if objective.kl_weight:
        # Rows hold the recorded ones in float32.
        torch.testing.assert_close(found, recorded.double(), rtol=0, atol=1e-6)
    return *objective(context), len(tokens.target)


@pytest.mark.parametrize("block_size", [4, 8])
@pytest.mark.parametrize(
    "changes",
    [
        {"denoising_steps": 1},
        {"denoising_steps": 3},
        {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.3, "denoising_steps": 4},
        {"remasking": "sequential", "denoising_steps": 4, "window": 4},
    ],
    ids=str,
)
@torch.no_grad()
def test_the_ratio_is_one_at_the_first_step_after_a_rollout(
    block_size: int, changes: dict[str, Any]
) -> None:
    """Every token of every rollout, once, has the log-probability that decoding recorded."""
    decoder = BlockDecoder(
        MODEL,
        settings(block_size, **changes),
        mask_token_id=MASK,
        stop_token_ids=STOPS,
        banned_token_ids=(),
        batch_size=4,
    )
    items = [
        trajectory(request, completion, block_size)
        for request, completion in zip(requests(), decoder.decode(requests()), strict=True)
    ]
    advantages = [1.0, -1.0] * (len(items) // 2)
    _, metrics, num = objective_of(MODEL, items, advantages, PolicyGradient(), block_size, MASK)
    assert float(metrics["ratio"]) == pytest.approx(1, abs=1e-6)
    assert float(metrics["clip_share"]) == 0
    assert num == sum(t.num_response_tokens for t in items)


def plain_log_probs(model: BlockDiffusionLM, prompt: list[int], state: list[int]) -> Tensor:
    """[S, V] at a block's state, from a plain block-causal pass; the mask is impossible."""
    ids = torch.tensor([prompt + state])
    grid = BlockLayout(len(state)).clean(torch.tensor([ids.shape[1]]), ids.shape[1])
    logits = model(ids, attention_mask("sdpa", grid, grid, torch.float64)).logits
    mask = model.config.mask_token_id
    return logits[0, len(prompt) :].index_fill(-1, torch.tensor([mask]), -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_expected_gradient_is_the_exact_one(num_steps: int) -> None:
    """All responses of a block of two tokens, in one step or from left to right in two.

    J = sum over responses y of p(y) R(y) is differentiated as it stands; the objective's
    gradient at every y, weighted with p(y), must be the same.
    """
    model = tiny(vocab_size=5, block_size=2)
    mask, prompt = 4, [1, 3]
    draw = torch.Generator().manual_seed(0)
    responses = list(itertools.product(range(4), repeat=2))
    rewards = torch.rand(len(responses), generator=draw, dtype=torch.float64)
    items, probabilities = [], []
    first = plain_log_probs(model, prompt, [mask, mask])
    for a, b in responses:
        second = first if num_steps == 1 else plain_log_probs(model, prompt, [a, mask])
        parts = torch.stack([first[0, a], second[1, b]])
        probabilities.append(parts.sum().exp())
        items.append(
            Trajectory(
                prompt_id="p",
                prompt_ids=prompt,
                response_ids=[a, b],
                initial_ids=[mask, mask],
                step_map=[0, num_steps - 1],
                log_probs=parts.tolist(),
                num_response_tokens=2,
                finish_reason="length",
                block_size=2,
            )
        )
    probability = torch.stack(probabilities)
    assert float(probability.detach().sum()) == pytest.approx(1)
    weights = list(model.parameters())
    exact = torch.autograd.grad((probability * rewards).sum(), weights, allow_unused=True)
    # A constant changes no policy gradient, so advantages may be centred.
    centred = (rewards - rewards.mean()).tolist()
    objective = PolicyGradient(average="token", kl_weight=0.0)
    loss, _, num = objective_of(model, items, centred, objective, 2, mask)
    assert num == 2 * len(responses)
    # The loss of a sequence is a sum over its tokens, divided by the average length.
    estimate = torch.autograd.grad(
        -2 * (probability.detach() * loss).sum(), weights, allow_unused=True
    )
    assert max(float(g.abs().max()) for g in exact if g is not None) > 1e-3
    for one, other in zip(exact, estimate, strict=True):
        if one is not None:
            assert other is not None
            torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
