"""Run the trainer to its end, resuming where a killed run stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerCallback, TrainerState

from t3d.core.files import plain, write_json
from t3d.core.progress import Stage, bar
from t3d.core.provenance import hash_weights, provenance
from t3d.models import LanguageModel
from t3d.training.config import TrainingConfig
from t3d.training.methods import Method
from t3d.training.trainer import DiffusionTrainer, TrainingCallback

SAVING_SHARE = 0.1
"""Largest share of the training time that writing checkpoints may take."""
_SHOWN = {
    "loss": "loss",
    "real_margin": "margin",
    "accuracy": "accuracy",
    "few_step_accuracy": "few-step accuracy",
    "cross_entropy": "cross entropy",
    "learning_rate": "learning rate",
}
"""Logged metrics that the display shows, with the names it gives them."""


def fit(
    lm: LanguageModel,
    method: Method,
    rows: Sequence[dict[str, Any]],
    config: TrainingConfig,
    directory: Path,
    *,
    teacher: LanguageModel | None = None,
    callbacks: Sequence[TrainingCallback] = (),
    progress: bool,
) -> DiffusionTrainer:
    """Train `lm.model` in place, from the last whole checkpoint in `directory` if it has one.

    The model is left in evaluation mode, ready to decode, with the adapter of `config.lora` merged;
    the trainer still has the adapter by itself. With `config.sharding` the model stays in shards:
    load the checkpoint that `save_trained` writes. Methods that need a teacher use `teacher`, by
    default a copy of `lm` as it is given.

    Raises:
        ValueError: if there are fewer sequences than one batch takes, a block is longer than the
            model, or the weights that are trained are in half precision.
    """
    config.check_enough(len(rows))
    if config.lora is None and lm.model.dtype.itemsize < 4:
        raise ValueError(
            f"{lm.name}: its weights are in {lm.dtype}, where small steps are lost; "
            "load it with dtype='float32', and set training.dtype for the arithmetic"
        )
    check_block_sizes(lm, config.block_sizes)
    trainer = DiffusionTrainer(lm, method, rows, config, directory, teacher)
    for callback in (*callbacks, Saving(config.save_seconds)):
        callback.trainer = trainer
        trainer.add_callback(callback)
    last = _last_checkpoint(directory)
    done = 0 if last is None else _step(last)
    if last is not None and done >= config.steps:
        # All steps are done already; transformers would train for one more.
        trainer._load_from_checkpoint(str(last))
        trainer.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
    else:
        with bar("training", config.steps, "step", done=done, show=progress) as count:
            trainer.add_callback(_Report(count))
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trainer.weights.finish()
    lm.model.eval()
    return trainer


def train(
    lm: LanguageModel,
    method: Method,
    rows: Sequence[dict[str, Any]],
    training: TrainingConfig,
    output: Path,
    *,
    config: dict[str, Any],
    notes: dict[str, Any] | None = None,
    teacher: LanguageModel | None = None,
    callbacks: Sequence[TrainingCallback] = (),
    progress: bool,
) -> dict[str, Any]:
    """`fit`, then save the model with its provenance.

    A killed run continues from its last checkpoint, in a hidden directory beside `output`. Of
    several processes the first one writes.

    Args:
        config: the whole configuration, for the provenance.
        notes: further keys of the provenance.

    Returns:
        The provenance, with `optimizer_steps`, `tokens_seen` and the metrics of `log`.

    Raises:
        ValueError: as `fit` does.
    """
    directory = output.parent / f".{output.name}.training"
    trainer = fit(
        lm,
        method,
        rows,
        training,
        directory,
        teacher=teacher,
        callbacks=callbacks,
        progress=progress,
    )
    trainer.save_trained(output)
    record = provenance(
        config=config, seed=training.seed, model=lm.name, weights_hash=hash_weights(output)
    )
    record |= notes or {}
    record["optimizer_steps"] = trainer.state.global_step
    record["tokens_seen"] = trainer.state.num_input_tokens_seen
    # A summary of the times comes last, without any of these.
    metrics = {"loss", "few_step_accuracy"}
    record["log"] = [plain(row) for row in trainer.state.log_history if metrics & row.keys()]
    if trainer.args.should_save:
        write_json(output / "provenance.json", record)
        _remove_checkpoints(directory)
    trainer.accelerator.wait_for_everyone()
    return record


def check_block_sizes(lm: LanguageModel, sizes: Sequence[int]) -> None:
    """Check that blocks are no longer than a model's positions: sequences are filled to blocks.

    Raises:
        ValueError: for a longer block.
    """
    room = lm.model.config.max_position_embeddings
    if max(sizes) > room:
        raise ValueError(
            f"training.block_sizes: {max(sizes)} is more than the {room} positions of {lm.name}; "
            "give a smaller one"
        )


class _Report(TrainerCallback):
    """Shows the optimizer steps, and the logged metrics that tell whether training goes well."""

    def __init__(self, count: Stage) -> None:
        self.count = count
        self.shown: dict[str, float] = {}
        self.since = 0, time.monotonic()
        """Number of tokens and time at the last log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.since = state.num_input_tokens_seen, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count.advance()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        found = {label: logs[name] for name, label in _SHOWN.items() if name in logs}
        if "loss" in found:
            (before, then), now = self.since, (state.num_input_tokens_seen, time.monotonic())
            found["tokens/s"] = (now[0] - before) / (now[1] - then)
            self.since = now
        # A log may hold other metrics than loss: those of `Watch`, or the summary of the run.
        self.shown |= found
        self.count.show(self.shown)


def _remove_checkpoints(directory: Path) -> None:
    """Delete the checkpoints once the result is written; files that `Watch` keeps stay."""
    for path in directory.glob("checkpoint-*"):
        shutil.rmtree(path)
    with suppress(OSError):
        directory.rmdir()


class Saving(TrainingCallback):
    """Asks for a checkpoint whenever enough time has passed since the last one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = self.pause = seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now = time.monotonic()
        due = torch.tensor(int(self.now - self.last >= self.pause), device=args.device)
        # All processes must save together and their clocks differ, so the first one decides.
        control.should_save = bool(broadcast(due))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()
        rest = (self.last - self.now) * (1 / SAVING_SHARE - 1)
        self.pause = max(self.seconds, rest) if self.seconds else 0.0


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _last_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint, which is one with the trainer's state, written last."""
    whole = [path.parent for path in directory.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(whole, key=_step, default=None)
