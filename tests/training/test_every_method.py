"""What holds of every method of the table in the one trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t3d.core.trajectory import training_rows
from t3d.models import LanguageModel
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.methods import METHODS, Method, build_method
from t3d.training.run import fit
from t3d.training.trainer import DiffusionTrainer
from tests.training.conftest import Recorder

Weights = Callable[[LanguageModel], dict[str, Tensor]]
ALL: dict[str, Method] = {
    **METHODS,
    "t3d_upstream": build_method(MethodConfig("t3d", compat="upstream")),
    "naive_td_upstream": build_method(MethodConfig("naive_td", compat="upstream")),
    "t3d_block_sum": build_method(
        MethodConfig("t3d", objective={"reduction": "sum", "over": "block"})
    ),
}


def config(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "steps": 2,
        "batch_size": 4,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
    }
    return TrainingConfig(**{**settings, **changes})


@pytest.mark.parametrize("name", list(ALL))
def test_an_accumulated_batch_is_a_large_batch(
    bench: Any, weights: Weights, tmp_path: Path, name: str
):
    results, losses = [], []
    for micro in (4, 1):
        lm, settings = bench.model(), config(micro_batch_size=micro)
        trainer = fit(lm, ALL[name], bench.rows(4), settings, tmp_path / str(micro), progress=False)
        results.append(weights(lm))
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert len(losses[0]) == 2
    assert all(math.isfinite(loss) for loss in losses[0])
    # The loss of a policy gradient is an advantage, of either sign.
    assert ALL[name].advantage or min(losses[0]) > 0
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-9)
    start = weights(bench.model())
    assert any((results[0][key] - start[key]).abs().max() > 1e-3 for key in start)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_model_runs_at_most_once_a_micro_batch(bench: Any, tmp_path: Path, name: str):
    lm, settings = bench.model(), config(micro_batch_size=2, block_sizes=[4])
    trainer = DiffusionTrainer(lm, METHODS[name], bench.rows(4), settings, tmp_path)
    calls: dict[str, int] = {}

    def count(role: str, model: nn.Module | None) -> None:
        if model is not None:
            calls[role] = 0
            model.register_forward_pre_hook(lambda *args: calls.update({role: calls[role] + 1}))

    count("student", lm.model)
    count("reference", trainer.reference)
    count("teacher", trainer.teacher)
    trainer.train()
    needs_teacher = METHODS[name].objective.needs_teacher
    frozen = ["teacher"] * needs_teacher + ["reference"] * (name == "t3d")
    assert calls == dict.fromkeys(["student", *frozen], 4)


def test_the_teacher_is_what_training_started_from(bench: Any, weights: Weights, tmp_path: Path):
    """By default a frozen copy of the student, or the model that is given."""
    other = bench.model(seed=2)
    before, results = weights(other), []
    for number, teacher in enumerate([None, bench.model(), other]):
        lm, settings = bench.model(), config(steps=3, block_sizes=[4])
        directory = tmp_path / str(number)
        trainer = DiffusionTrainer(
            lm, METHODS["cdlm"], bench.rows(4), settings, directory, teacher=teacher
        )
        trainer.train()
        assert trainer.teacher is not None
        expected = before if teacher is other else weights(bench.model())
        actual = trainer.teacher.state_dict()
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
        results.append(weights(lm)["model.norm.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("compat", [None, "upstream"])
def test_frozen_noise_is_the_same_at_every_epoch_and_fresh_noise_is_not(
    bench: Any, tmp_path: Path, compat: Any
):
    settings = {"level_power": 0, "random_share": 0.3}
    method = build_method(MethodConfig("naive_td", noiser=settings, compat=compat))
    recorder = Recorder(method.noiser)
    method = replace(method, noiser=recorder)
    # Each step is an epoch of its own.
    fit(
        bench.model(),
        method,
        bench.rows(4),
        config(steps=8, block_sizes=[4]),
        tmp_path,
        progress=False,
    )
    seen: dict[int, set[tuple[int, ...]]] = {index: set() for index in range(4)}
    for batch, [view] in zip(recorder.batches, recorder.views, strict=True):
        for row, index in enumerate(batch.index.tolist()):
            seen[index].add(tuple(view.xt[row, : int(batch.length[row])].tolist()))
    numbers = [len(states) for states in seen.values()]
    assert numbers == [1] * 4 if compat else min(numbers) > 1
    assert len(set.union(*seen.values())) >= 4


@pytest.mark.parametrize("name", ["t3d", "naive_td"])
def test_a_micro_batch_of_which_upstream_hides_nothing_leaves_the_metrics_finite(
    bench: Any, tmp_path: Path, name: str
):
    """int(0.25 * 1) tokens of the first response are hidden."""
    first, *rest = bench.trajectories(4)
    items = [replace(first, num_response_tokens=1), *rest]
    settings = {"levels": [0.25]}
    method = build_method(MethodConfig(name, noiser=settings, compat="upstream"))
    trainer = fit(
        bench.model(),
        method,
        training_rows(items),
        config(micro_batch_size=1, block_sizes=[8]),
        tmp_path,
        progress=False,
    )
    logged = [row for row in trainer.state.log_history if "cross_entropy" in row]
    assert len(logged) == 2
    assert all(math.isfinite(value) for row in logged for value in row.values())


def test_d3llms_blocks_and_levels_grow_with_progress(bench: Any, tmp_path: Path):
    recorder = Recorder(METHODS["d3llm"].noiser)
    method = replace(METHODS["d3llm"], noiser=recorder)
    settings = config(steps=6, block_sizes=[8, 2, 4])
    fit(bench.model(), method, bench.rows(4), settings, tmp_path, progress=False)
    assert recorder.block_sizes == [2, 2, 4, 4, 8, 8]
    assert recorder.progress == pytest.approx([step / 6 for step in range(6)])
