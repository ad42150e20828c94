"""Loads against the layout's own rule, arithmetic against torch's counter, rows by a set clock."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from t3d.bench import train as bench
from t3d.bench.roofline import Load, ModelCosts, Rates
from t3d.bench.subject import ordinary_ids
from t3d.bench.train import (
    PROMPT,
    RESPONSE,
    ROLLOUT_BLOCK,
    TrainRow,
    measure,
    random_trajectories,
    step_flops,
    training_load,
)
from t3d.core.blocks import PADDING, BlockLayout, may_attend
from t3d.core.trajectory import TrajectoryBatch, training_rows
from t3d.models import LanguageModel
from t3d.noising import NoiserInput, Vocabulary
from t3d.testing import tiny
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.methods import build_method

CONFIG = TrainingConfig(steps=3, batch_size=4, micro_batch_size=2, learning_rate=0.0)
RATES = Rates(bytes_per_second=1e9, flops_per_second=1e9)


def test_trajectories_are_those_of_a_decoder_at_full_steps() -> None:
    tokens = range(5, 90)
    found = random_trajectories(30, tokens, 99)
    assert random_trajectories(7, tokens, 99) == found[:7]
    for trajectory in found:
        before, after = len(trajectory.prompt_ids), len(trajectory.response_ids)
        assert PROMPT[0] <= before <= PROMPT[1]
        assert RESPONSE[0] <= after < RESPONSE[1] + ROLLOUT_BLOCK
        assert (before + after) % ROLLOUT_BLOCK == 0
        assert set(trajectory.prompt_ids + trajectory.response_ids) <= set(tokens)
        assert set(trajectory.initial_ids) == {99}
        # Every token has a rank of its own.
        assert sorted(trajectory.decode_order()) == list(range(after))
    assert len({tuple(t.response_ids) for t in found}) == len(found)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 30)), min_size=1, max_size=4),
    size=st.sampled_from([1, 4, 8, 32]),
    method=st.sampled_from(["t3d", "cdlm", "d3llm"]),
)
@settings(max_examples=30, deadline=None)
def test_a_load_is_what_the_layout_lays_out(
    lengths: list[tuple[int, int]], size: int, method: str
) -> None:
    layout = BlockLayout(size)
    template = random_trajectories(1, range(60), 63)[0]
    trajectories = [
        replace(
            template,
            prompt_ids=[0] * prompt,
            response_ids=[1] * response,
            initial_ids=[63] * response,
            step_map=[0] * response,
            log_probs=[0.0] * response,
            num_response_tokens=response,
        )
        for prompt, response in lengths
    ]
    batch = TrajectoryBatch.collate(training_rows(trajectories), 0)
    keys = torch.arange(len(lengths))
    noised = NoiserInput(batch, layout, keys, Vocabulary(64, 63, 0, 64), 0.5)
    views = build_method(MethodConfig(method)).noiser(noised)
    grid = layout.training(batch.prompt_length, batch.length, len(views))
    held = grid.stream != PADDING
    seen = may_attend(grid[:, :, None], grid[:, None]) & held[:, :, None] & held[:, None]
    load = training_load(batch, layout, views)
    assert load.tokens == int(held.sum())
    assert load.pairs == int(seen.sum())
    assert load.logits == sum(int(view.loss_mask.sum()) for view in views)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize(
    ("checkpointing", "lora"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_flops_of_a_pass_are_those_that_torch_counts(
    frozen: int, checkpointing: bool, lora: bool
) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "head_dim": 16,
        "vocab_size": 96,
    }
    model = tiny(dtype=torch.float32, attn_implementation="eager", **shape)
    costs = ModelCosts.of(model)
    if lora:
        model.requires_grad_(False)
        # Gradients flow through the layers, as to the adapters of the first one.
        model.enable_input_require_grads()
    if checkpointing:
        for layer in model.base_model.layers:  # type: ignore[union-attr]
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    model.train()
    ids = torch.arange(3 * 40).reshape(3, 40) % 90
    inputs: dict[str, Any] = {"select": torch.arange(70)}
    mask = torch.zeros(3, 1, 40, 40)
    # By default a layer is computed again up to its last product alone.
    with FlopCounterMode(display=False) as counter, set_checkpoint_early_stop(False):
        model(ids, mask, **inputs).logits.sum().backward()
        with torch.no_grad():
            for _ in range(frozen):
                model(ids, mask, **inputs)
    load = Load(tokens=3 * 40, pairs=3 * 40**2, logits=70)
    flops = step_flops(costs, load, frozen=frozen, checkpointing=checkpointing, lora=lora)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.04)


class SetClock(bench.Clock):
    """Steps take 100, 2, 3, 5, 7, ... seconds; the first and the last one only here."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append([100.0, 2.0, 3.0, 5.0, 7.0][len(self.seconds)])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Clock", SetClock)


def row(lm: LanguageModel, method: str = "t3d", rates: Rates = RATES, **changed: Any) -> TrainRow:
    config = replace(CONFIG, **{"steps": 2, **changed})
    return measure(lm, method, build_method(MethodConfig(method)), config, rates)


@pytest.mark.usefixtures("clock")
def test_a_row_counts_all_steps_but_the_first(lm: LanguageModel, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    method = build_method(MethodConfig("t3d"))
    found = measure(lm, "t3d", method, replace(CONFIG, steps=4), RATES, trace=trace)
    # Of 2, 3 and 5 seconds, not of the traced step's 7.
    assert found.trajectories_per_second == 4 / 3
    tokens = sum(
        len(t.prompt_ids) + len(t.response_ids)
        for t in random_trajectories(4, ordinary_ids(lm), lm.mask_token_id)
    )
    assert found.tokens_per_second == pytest.approx(tokens / 3)
    assert len(found.losses) == 5
    assert (found.implementation, found.method, found.model) == ("t3d", "t3d", lm.name)
    assert (found.dtype, found.device) == ("float32", "cpu")
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert any("mm" in event.get("name", "") for event in events)


@pytest.mark.usefixtures("clock")
def test_mfu_is_the_arithmetic_of_what_ran(lm: LanguageModel) -> None:
    own = row(lm)
    assert own.mfu > 0
    faster = Rates(RATES.bytes_per_second, 2 * RATES.flops_per_second)
    assert row(lm, rates=faster).mfu == pytest.approx(own.mfu / 2)
    # The same states; a student's pass is three times a frozen copy's.
    assert row(lm, "naive_td").mfu == pytest.approx(own.mfu * 3 / 4)
    # Micro-batches are of one step.
    assert row(lm, micro_batch_size=4).mfu == pytest.approx(own.mfu)
    # Of four passes one more, but for the head.
    assert 1.1 < row(lm, activation_checkpointing=True).mfu / own.mfu < 1.25


def test_a_single_step_would_measure_nothing(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="training.steps must be at least 2"):
        row(lm, steps=1)
