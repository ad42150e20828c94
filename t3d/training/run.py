"""Run the trainer to its end, resuming where a killed run stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from t3d.models import LanguageModel
from t3d.training.arguments import training_arguments
from t3d.training.config import TrainingConfig
from t3d.training.methods import Method
from t3d.training.trainer import DiffusionTrainer, TrainingCallback


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

    The model is left in evaluation mode, ready to decode, with `config.lora`'s adapter folded in;
    by itself the adapter is the trainer's. With `config.sharding` it stays in shards: load what
    `save_trained` writes. Methods that need a teacher take `teacher`, by default a copy of `lm`
    as it is given.

    Raises:
        ValueError: if there are fewer sequences than one batch takes.
    """
    if len(rows) < config.batch_size:
        raise ValueError(
            f"{len(rows)} training sequences are fewer than batch_size={config.batch_size}"
        )
    arguments = training_arguments(config, directory, progress=progress)
    trainer = DiffusionTrainer(
        lm,
        method,
        rows,
        arguments,
        config.block_sizes,
        teacher,
        lora=config.lora,
        attention=config.attention,
        sharding=config.sharding,
    )
    for callback in callbacks:
        callback.trainer = trainer
        trainer.add_callback(callback)
    last = _last_checkpoint(directory)
    if last is not None and _step(last) >= config.steps:
        # Nothing is left to train; transformers would go on for another step.
        trainer._load_from_checkpoint(str(last))
        trainer.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.adapter is not None:
        trainer.adapter.merge()
    lm.model.eval()
    return trainer


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the trainer's state comes last."""
    whole = [path.parent for path in directory.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(whole, key=_step, default=None)
