"""`compat: upstream` against numbers that the authors' released code gave.

upstream.json holds what collect_training_data of its train/prepare.py, and compute_logp,
compute_logp_fake, compute_loss and compute_path_loss_from_step_map of its
train/self_ddo_sdar_full.py gave, in float64 and at the commit named there, for the sequences and
logits below: batch 1, one fixed level, alpha 0.5, beta 0.1, lambda 0.2, post_num 2, 11 pad tokens
behind the response. `gradient` is that of the total by the logits times cos(token id).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_row
from t3d.noising import NoiserInput, View, Vocabulary
from t3d.objectives import Context, Predictions
from t3d.training.config import MethodConfig
from t3d.training.forward import assemble
from t3d.training.methods import Method, build_method

PROMPT, SIZE, MASK, PAD, WORDS = 8, 23, 22, 0, 20
CASES = json.loads(Path(__file__).with_name("upstream.json").read_text())["cases"]
EXACT = [case for case in CASES if case["random_ratio"] == 0]
RANDOM = [case for case in CASES if case["random_ratio"] > 0]


def logits(num: int, phase: float) -> Tensor:
    """Those of the response's positions, float64 [num, SIZE]."""
    position, token = (torch.arange(n, dtype=torch.float64) for n in (num, SIZE))
    return 3 * torch.sin((position[:, None] + 1) * (token + 2) * 0.7 + phase)


def trajectory(case: dict[str, Any]) -> Trajectory:
    """A prompt of whole blocks, and a response that ends with the pad token if it stops."""
    num, size = case["num_tokens"], case["rollout_block_size"]
    filling = -num % size
    ids = [1 + (5 * i + 3) % 19 for i in range(num)]
    if case["stops"]:
        ids[-1] = PAD
    steps = [(3 * (i % size) + i // size) % size // case["tokens_per_step"] for i in range(num)]
    return Trajectory(
        prompt_id="p",
        prompt_ids=[1 + 7 * i % 19 for i in range(PROMPT)],
        response_ids=ids + [MASK] * filling,
        initial_ids=[MASK] * (num + filling),
        step_map=steps + [-1] * filling,
        log_probs=[0.0] * (num + filling),
        num_response_tokens=num,
        finish_reason="stop" if case["stops"] else "length",
        block_size=size,
    )


def noised(case: dict[str, Any], num: int = 1) -> tuple[Method, TrajectoryBatch, View]:
    """The method, and a batch and view of `num` equal sequences with different random numbers."""
    settings = {
        "levels": [case["level"]],
        "random_share": case["random_ratio"],
        "path_k_steps": case["path_k_steps"],
    }
    method = build_method(MethodConfig("t3d", noiser=settings, compat="upstream"))
    batch = TrajectoryBatch.collate([training_row(trajectory(case), 0)] * num, PAD)
    vocabulary = Vocabulary(SIZE, MASK, PAD, WORDS)
    layout, keys = BlockLayout(case["block_size"]), torch.arange(num)
    [view] = method.noiser(NoiserInput(batch, layout, keys, vocabulary, 0.5))
    return method, batch, view


@pytest.mark.parametrize("case", EXACT)
def test_states_losses_and_gradient_are_those_of_the_released_code(case: dict[str, Any]):
    method, batch, view = noised(case)
    num = case["num_tokens"]
    response = slice(PROMPT, PROMPT + num)
    assert "".join(str(int(h)) for h in view.masked[0, response]) == case["hidden"]
    assert int(view.masked.sum()) == case["hidden"].count("1")
    assert view.xt[0, PROMPT:].tolist() == case["xt"]

    student, reference = logits(num, 0.0).requires_grad_(), logits(num, 0.4)
    layout = BlockLayout(case["block_size"])
    _, tokens = assemble(batch, [view], layout, "sdpa", torch.float32)
    context = Context(
        tokens,
        student=lambda: Predictions.of_logits(student[tokens.position - PROMPT]),
        reference=lambda: Predictions.of_logits(reference[tokens.position - PROMPT]),
        sample_keys=torch.zeros_like(tokens.target),
    )
    loss, metrics = method.objective(context)
    loss.sum().backward()
    assert student.grad is not None
    gradient = student.grad @ torch.arange(SIZE, dtype=torch.float64).cos()
    assert float(metrics["ddo"]) == pytest.approx(case["ddo"], rel=1e-12)
    # The weights of the path loss are float32.
    assert float(metrics["path"]) == pytest.approx(case["path"], rel=1e-7)
    assert gradient.tolist() == pytest.approx(case["gradient"], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", RANDOM)
def test_as_many_tokens_are_random_as_in_the_released_code(case: dict[str, Any]):
    _, _, view = noised(case, num=200)
    shown = view.xt[view.masked & (view.xt != MASK)]
    assert (view.masked & (view.xt != MASK)).sum(1).tolist() == [case["num_random"]] * 200
    # All ids of the tokenizer's own vocabulary come, and no others.
    assert set(shown.tolist()) == set(range(WORDS))


def test_a_sequence_has_one_level():
    """Drawn in proportion to level ** 8."""
    method = build_method(MethodConfig("t3d", noiser={"random_share": 0.0}, compat="upstream"))
    num = 4000
    batch = TrajectoryBatch.collate([training_row(trajectory(EXACT[0]), 0)] * num, PAD)
    vocabulary = Vocabulary(SIZE, MASK, PAD, WORDS)
    given = NoiserInput(batch, BlockLayout(8), torch.arange(num), vocabulary, 0.5)
    [view] = method.noiser(given)
    hidden = view.masked.view(num, -1, 8).sum(-1)[:, 1:]
    assert (hidden == hidden[:, :1]).all()
    levels = [1.0, 0.75, 0.5, 0.25]
    for level in levels:
        share = level**8 / sum(x**8 for x in levels)
        count = int((hidden[:, 0] == 8 * level).sum())
        assert abs(count - num * share) < 5 * (num * share * (1 - share)) ** 0.5 + 1
