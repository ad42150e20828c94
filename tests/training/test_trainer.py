"""The trainer: accumulation, rounds of the reference, noise, metrics, schedule, bad losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from t3d.models import LanguageModel
from t3d.noising import TrajectoryState
from t3d.objectives import Context, CrossEntropy
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.methods import Method, build_method
from t3d.training.run import fit
from t3d.training.trainer import DiffusionTrainer
from tests.training.conftest import Recorder, count_projections

Weights = Callable[[LanguageModel], dict[str, Tensor]]


def config(**changes: Any) -> TrainingConfig:
    """Two steps an epoch on 19 sequences."""
    settings: dict[str, Any] = {
        "steps": 5,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "logging_steps": 1,
    }
    return TrainingConfig(**{**settings, **changes})


def recorded(method: Method) -> tuple[Method, Recorder]:
    recorder = Recorder(method.noiser)
    return replace(method, noiser=recorder), recorder


def logs(trainer: DiffusionTrainer) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


METHODS = {
    "naive_td": build_method(MethodConfig("naive_td")),
    "t3d": build_method(MethodConfig("t3d", reference_every=2)),
    "sampled": build_method(
        MethodConfig(
            "t3d", objective={"fake": "sample"}, noiser={"level_power": 1}, reference_every=2
        )
    ),
}


def test_an_accumulated_batch_is_a_large_batch(bench: Any, weights: Weights, tmp_path: Path):
    """Whatever the micro-batch: the sequences, their noise, their weight, the reference."""
    results, losses, visited = [], [], []
    for micro in (8, 4, 1):
        lm, (method, recorder) = bench.model(), recorded(METHODS["sampled"])
        settings = config(micro_batch_size=micro, block_sizes=[4, 8])
        trainer = fit(lm, method, bench.rows(19), settings, tmp_path / str(micro), progress=False)
        results.append(weights(lm))
        losses.append([row["loss"] for row in logs(trainer)])
        indices = [int(i) for batch in recorder.batches for i in batch.index]
        visited.append([sorted(indices[i : i + 8]) for i in range(0, 40, 8)])
        assert len(indices) == 40
        assert len(set(recorder.block_sizes)) == 2
    start = weights(bench.model())
    assert any((results[0][name] - start[name]).abs().max() > 1e-3 for name in start)
    for number in (1, 2):
        assert visited[number] == visited[0]
        assert losses[number] == pytest.approx(losses[0], abs=1e-6)
        torch.testing.assert_close(results[number], results[0], rtol=0, atol=1e-9)


def test_the_gradient_is_that_of_the_mean_loss_over_sequences(bench: Any, tmp_path: Path):
    """One step of plain SGD, against the objective called by hand on each sequence."""
    lm, (method, recorder) = bench.model(), recorded(METHODS["naive_td"])
    before = copy.deepcopy(lm.model)
    settings = config(
        steps=1,
        micro_batch_size=2,
        learning_rate=0.5,
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        trainer={"optim": "sgd"},
    )
    fit(lm, method, bench.rows(8), settings, tmp_path, progress=False)
    total = torch.zeros((), dtype=torch.float64)
    for batch, [view], size in zip(
        recorder.batches, recorder.views, recorder.block_sizes, strict=True
    ):
        for row in range(len(batch.length)):
            losses = []
            for p in view.loss_mask[row].nonzero().flatten().tolist():
                start = p - p % size
                block = view.xt[row, start : start + size]
                ids = torch.cat([batch.input_ids[row, :start], block])[None]
                visible = torch.arange(len(ids[0])) // size
                mask = (visible[:, None] >= visible[None])[None, None]
                logits = before(ids, mask).logits[0, p]
                losses.append(-logits.log_softmax(-1)[batch.input_ids[row, p]])
            total = total + torch.stack(losses).mean() / 8
    total.backward()
    for (name, value), old in zip(lm.model.named_parameters(), before.parameters(), strict=True):
        assert old.grad is not None, name
        # Qwen3's norms compute in float32.
        torch.testing.assert_close(value, old - 0.5 * old.grad, rtol=0, atol=1e-6)
        assert old.grad.abs().max() > 1e-3, name


class Watch(TrainerCallback):
    """Compares the reference with the student and with itself after every step."""

    def __init__(self) -> None:
        self.trainer: DiffusionTrainer | None = None
        self.states: list[dict[str, Tensor]] = []
        self.equal: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        assert self.trainer.reference is not None
        assert not self.trainer.reference.training
        assert all(p.grad is None for p in self.trainer.reference.parameters())
        reference = self.trainer.reference.state_dict()
        student = kwargs["model"].state_dict()
        self.states.append({k: v.clone() for k, v in reference.items()})
        self.equal.append(all(torch.equal(reference[k], student[k]) for k in student))


@pytest.mark.parametrize("every", [1, 3])
def test_the_reference_is_refreshed_at_every_round_and_frozen_between(
    bench: Any, weights: Weights, tmp_path: Path, every: int
):
    lm, watch = bench.model(), Watch()
    first = weights(lm)
    settings = config(steps=7, micro_batch_size=4, learning_rate=1e-3, warmup_steps=0)
    trainer = DiffusionTrainer(
        lm,
        build_method(MethodConfig("t3d", reference_every=every)),
        bench.rows(19),
        settings,
        tmp_path,
    )
    watch.trainer = trainer
    trainer.add_callback(watch)
    trainer.train()
    assert watch.equal == [step % every == 0 for step in range(1, 8)]
    history = [first, *watch.states]
    for step in range(1, 8):
        same = all(torch.equal(history[step][k], history[step - 1][k]) for k in first)
        assert same == (step % every != 0)
    # Right after a refresh student and reference agree everywhere.
    margins = [row["real_margin"] for row in logs(trainer)]
    assert [margin == 0 for margin in margins] == [step % every == 0 for step in range(7)]


def test_a_refresh_writes_nothing(bench: Any, tmp_path: Path):
    config = TrainingConfig(steps=2, batch_size=4, micro_batch_size=4, block_sizes=[4])
    method = build_method(MethodConfig("t3d", reference_every=1))
    fit(bench.model(), method, bench.rows(8), config, tmp_path, progress=False)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("num_views", [1, 2])
def test_one_student_and_one_reference_pass_with_logits_only_at_loss_positions(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_views: int
):
    lm = bench.model()
    method, recorder = recorded(build_method(MethodConfig("t3d", noiser={"num_views": num_views})))
    settings = config(steps=2, micro_batch_size=2, block_sizes=[4])
    trainer = DiffusionTrainer(lm, method, bench.rows(19), settings, tmp_path)
    assert trainer.reference is not None
    student, reference = count_projections(monkeypatch, lm.model, trainer.reference)
    trainer.train()
    assert student == reference == recorder.num_loss_tokens
    assert len(student) == 2 * 4


def test_noise_is_fresh_at_every_visit(bench: Any, tmp_path: Path):
    lm = bench.model()
    method, recorder = recorded(build_method(MethodConfig("naive_td", noiser={"level_power": 0})))
    settings = config(steps=12, block_sizes=[4])
    fit(lm, method, bench.rows(8), settings, tmp_path, progress=False)
    seen: dict[int, set[tuple[int, ...]]] = {index: set() for index in range(8)}
    for batch, [view] in zip(recorder.batches, recorder.views, strict=True):
        for row, index in enumerate(batch.index.tolist()):
            seen[index].add(tuple(view.xt[row, : int(batch.length[row])].tolist()))
    assert sum(len(states) for states in seen.values()) > 30


def test_two_runs_are_equal_and_another_seed_is_not(bench: Any, weights: Weights, tmp_path: Path):
    results = []
    for number, seed in enumerate([3, 3, 4]):
        lm = bench.model()
        method = METHODS["sampled"]
        settings = config(steps=2, seed=seed)
        fit(lm, method, bench.rows(8), settings, tmp_path / str(number), progress=False)
        results.append(weights(lm)["model.norm.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_learning_rate_warms_up_and_falls_to_a_tenth_of_its_peak(bench: Any, tmp_path: Path):
    settings = config(steps=10, warmup_steps=4, learning_rate=1e-3)
    method = METHODS["naive_td"]
    trainer = fit(bench.model(), method, bench.rows(8), settings, tmp_path, progress=False)
    rates = [row["learning_rate"] for row in logs(trainer)]
    warmup = [1e-3 * step / 4 for step in range(4)]
    cosine = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx(warmup + [1e-3 * (0.1 + 0.9 * c) for c in cosine])
    after = trainer.lr_scheduler.get_last_lr()  # type: ignore[union-attr]
    assert after == pytest.approx([1e-4] * len(after))


def test_tokens_seen_counts_every_visited_token(bench: Any, tmp_path: Path):
    method, recorder = recorded(METHODS["naive_td"])
    settings = config(micro_batch_size=2)
    trainer = fit(bench.model(), method, bench.rows(19), settings, tmp_path, progress=False)
    expected = sum(int(batch.length.sum()) for batch in recorder.batches)
    assert trainer.state.num_input_tokens_seen == expected > 0


def test_metrics_are_averaged_since_the_last_log(bench: Any, tmp_path: Path):
    single, grouped = (
        logs(
            fit(
                bench.model(),
                METHODS["t3d"],
                bench.rows(19),
                config(steps=4, micro_batch_size=4, logging_steps=every),
                tmp_path / str(every),
                progress=False,
            )
        )
        for every in (1, 2)
    )
    names = {"ddo", "path", "real_margin", "fake_margin", "cross_entropy", "reference_agreement"}
    assert names | {"loss", "grad_norm", "learning_rate"} <= set(grouped[0])
    assert [row["step"] for row in grouped] == [2, 4]
    for name in names | {"loss"}:
        means = [(single[i][name] + single[i + 1][name]) / 2 for i in (0, 2)]
        assert [row[name] for row in grouped] == pytest.approx(means, abs=2e-6)
    for row in single:
        assert row["loss"] == pytest.approx(row["ddo"] + 0.2 * row["path"], abs=1e-5)


def test_in_bfloat16_a_fresh_reference_equals_the_student(bench: Any, tmp_path: Path):
    """Master weights stay float32; both models compute in bfloat16."""
    lm = bench.model(dtype=torch.float32)
    settings = config(steps=1, dtype="bfloat16", block_sizes=[4], trainer={"use_cpu": True})
    method = build_method(MethodConfig("t3d"))
    trainer = DiffusionTrainer(lm, method, bench.rows(8), settings, tmp_path)
    assert trainer.reference is not None
    dtypes: list[torch.dtype] = []
    trainer.reference.get_submodule("model.layers.0.mlp.up_proj").register_forward_hook(
        lambda module, args, out: dtypes.append(out.dtype)
    )
    trainer.train()
    [row] = logs(trainer)
    assert dtypes == [torch.bfloat16]
    assert (row["real_margin"], row["fake_margin"], row["reference_agreement"]) == (0, 0, 1)
    assert lm.model.dtype == torch.float32


@dataclass(frozen=True)
class Diverging:
    """Cross-entropy that becomes infinite in the third step."""

    calls: list[int]
    needs_reference: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls.append(1)
        loss, metrics = CrossEntropy()(context)
        return loss / (0.0 if len(self.calls) == 5 else 1.0), metrics


def test_a_loss_that_is_not_finite_stops_training_and_names_the_step(
    bench: Any, weights: Weights, tmp_path: Path
):
    lm = bench.model()
    method = Method("trajectories", TrajectoryState(), Diverging([]))
    settings = config(micro_batch_size=4, save_seconds=0)
    with pytest.raises(ValueError, match="loss at optimizer step 3 is not finite; lower learning"):
        fit(lm, method, bench.rows(19), settings, tmp_path, progress=False)
    assert all(value.isfinite().all() for value in weights(lm).values())
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_tensorboard_shows_the_objectives_metrics(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    settings = config(steps=2, report_to=["tensorboard"])
    trainer = fit(bench.model(), METHODS["t3d"], bench.rows(8), settings, tmp_path, progress=False)
    [events] = tmp_path.rglob("events.out.tfevents.*")
    accumulator = event_accumulator.EventAccumulator(str(events.parent))
    accumulator.Reload()
    for name in ("loss", "ddo", "path", "learning_rate"):
        shown = accumulator.Scalars(f"train/{name}")
        assert [event.step for event in shown] == [1, 2]
        values = [row[name] for row in logs(trainer)]
        assert [event.value for event in shown] == pytest.approx(values)
