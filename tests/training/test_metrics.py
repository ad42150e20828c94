"""What is measured while a student trains, and that measuring changes nothing."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from t3d.decoding.config import DecodingConfig
from t3d.evaluation.config import WatchConfig
from t3d.evaluation.evaluate import evaluate
from t3d.experiment.watch import Watch
from t3d.models import LanguageModel, from_pretrained
from t3d.tasks.base import Example, Grade, Split
from t3d.training.config import LoraSettings, MethodConfig, TrainingConfig
from t3d.training.methods import build_method
from t3d.training.run import fit
from t3d.training.trainer import DiffusionTrainer, TrainingCallback
from tests.training.test_run import PowerCut

Weights = Callable[[LanguageModel], dict[str, Tensor]]
METHOD = build_method(MethodConfig("t3d", reference_every=2))
SETTINGS = TrainingConfig(
    steps=5, batch_size=4, micro_batch_size=4, learning_rate=3e-2, warmup_steps=0, logging_steps=1
)
PROBLEMS = [Example(str(number), f"What is {number} + 2?") for number in range(8)]
WATCH = WatchConfig(
    every=2, num_problems=6, decoding=DecodingConfig(denoising_steps=1, max_new_tokens=8)
)


class Checksum:
    """A benchmark whose accuracy changes with every weight."""

    name = "checksum"

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        return PROBLEMS[:num]

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        sums = [
            zlib.crc32(f"{e.id} {out}".encode()) for e, out in zip(examples, outputs, strict=True)
        ]
        return [Grade(total % 2 == 0, str(total)) for total in sums]


class Squares(TrainerCallback):
    """The gradient's norm before it is clipped."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        grads = [w.grad for w in kwargs["model"].parameters() if w.grad is not None]
        self.norms.append(float(sum(grad.square().sum() for grad in grads) ** 0.5))


def test_the_logged_gradient_norm_is_that_of_the_trained_weights(bench: Any, tmp_path: Path):
    """Without clipping, so that the callback sees what the log is about."""
    squares, lora = Squares(), LoraSettings(rank=2)
    settings = replace(SETTINGS, steps=3, max_grad_norm=1e9, lora=lora)
    trainer = DiffusionTrainer(bench.model(), METHOD, bench.rows(8), settings, tmp_path)
    trainer.add_callback(squares)
    trainer.train()
    logged = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert logged == pytest.approx(squares.norms)
    assert len(logged) == 3


class History(TrainerCallback):
    """Writes the student after every step."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.trainer: DiffusionTrainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        self.trainer.save_student(self.directory / str(state.global_step))


def student(bench: Any) -> LanguageModel:
    lm = bench.model(dtype=torch.float32)
    lm.model.config.mask_token_id = lm.mask_token_id
    return lm


def watch_of(lm: LanguageModel) -> Watch:
    return Watch(lm, Checksum(), PROBLEMS, WATCH, batch_size=4)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, dropout=0.2)], ids=["full", "lora"])
def test_watching_changes_nothing_and_keeps_the_best(
    bench: Any, weights: Weights, tmp_path: Path, lora: LoraSettings | None
):
    settings, rows = replace(SETTINGS, lora=lora), bench.rows(8)
    plain, watched = student(bench), student(bench)
    alone = fit(plain, METHOD, rows, settings, tmp_path / "plain", progress=False)
    history = History(tmp_path / "history")
    callbacks: Any = [history, watch_of(watched)]
    trainer = fit(
        watched, METHOD, rows, settings, tmp_path / "run", callbacks=callbacks, progress=False
    )
    expected = weights(plain)
    assert all(torch.equal(value, expected[name]) for name, value in weights(watched).items())
    losses = [
        [row for row in t.state.log_history if "loss" in row or "ddo" in row]
        for t in (alone, trainer)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5

    lines = (tmp_path / "run" / "watch.jsonl").read_text().splitlines()
    found = {row["step"]: row["few_step_accuracy"] for row in map(json.loads, lines)}
    assert list(found) == [2, 4, 5]
    logged = [row for row in trainer.state.log_history if "few_step_accuracy" in row]
    assert [row["step"] for row in logged] == [2, 4, 5]
    for row in logged:
        lm = from_pretrained(tmp_path / "history" / str(row["step"]))
        result = evaluate(
            lm, Checksum(), PROBLEMS[:6], WATCH.decoding, batch_size=3, progress=False
        ).row
        assert row["few_step_accuracy"] == found[row["step"]] == result.accuracy
        assert row["few_step_n"] == 6
    best = max(found, key=lambda step: found[step])
    kept, then = from_pretrained(tmp_path / "run" / "best"), tmp_path / "history" / str(best)
    same = weights(from_pretrained(then))
    assert all(torch.equal(value, same[name]) for name, value in weights(kept).items())
    assert json.loads((tmp_path / "run" / "best" / "watch.json").read_text())["step"] == best
    assert len(set(found.values())) > 1


class Cut(TrainingCallback):
    """The power goes off after the fourth step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            raise PowerCut


def test_a_resumed_run_watches_as_an_uninterrupted_one(bench: Any, tmp_path: Path):
    settings, rows = replace(SETTINGS, save_seconds=0), bench.rows(8)
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def train(directory: Path, *callbacks: TrainingCallback) -> None:
        lm = student(bench)
        own = [watch_of(lm), *callbacks]
        fit(lm, METHOD, rows, settings, directory, callbacks=own, progress=False)

    train(whole)
    with pytest.raises(PowerCut):
        train(cut, Cut())
    # The log is a step ahead of the last checkpoint.
    assert (cut / "watch.jsonl").read_text().count("\n") == 2
    assert [path.name for path in cut.glob("checkpoint-*")] == ["checkpoint-3"]
    train(cut)
    assert (cut / "watch.jsonl").read_bytes() == (whole / "watch.jsonl").read_bytes()
    for file in ("model.safetensors", "watch.json"):
        assert (cut / "best" / file).read_bytes() == (whole / "best" / file).read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_lines_of_a_run_without_checkpoints_are_written_anew(bench: Any, tmp_path: Path):
    stale = {"step": 2, "few_step_accuracy": 1.0, "few_step_n": 6}
    (tmp_path / "watch.jsonl").write_text(json.dumps(stale) + "\n")
    lm = student(bench)
    settings = replace(SETTINGS, steps=1)
    fit(lm, METHOD, bench.rows(8), settings, tmp_path, callbacks=[watch_of(lm)], progress=False)
    [line] = (tmp_path / "watch.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 1
    assert (tmp_path / "best" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["every", "num_problems"])
def test_settings_out_of_range_are_refused(name: str):
    with pytest.raises(ValueError, match=f"watch: {name} must be at least 1, got 0"):
        WatchConfig(**dict[str, Any]({name: 0}))
