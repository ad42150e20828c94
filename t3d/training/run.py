"""Run the trainer to its end, resuming where a killed run stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from t3d.methods import Method
from t3d.models import LanguageModel
from t3d.training.config import TrainingConfig
from t3d.training.trainer import DiffusionTrainer


def fit(
    lm: LanguageModel,
    method: Method,
    rows: Sequence[dict[str, Any]],
    config: TrainingConfig,
    directory: Path,
    *,
    progress: bool,
) -> DiffusionTrainer:
    """Train `lm.model` in place.

    Raises:
        ValueError: if there are fewer sequences than one batch takes.
    """
    if len(rows) < config.batch_size:
        raise ValueError(
            f"{len(rows)} training sequences are fewer than batch_size={config.batch_size}"
        )
    arguments = config.arguments(directory, progress=progress)
    trainer = DiffusionTrainer(lm, method, rows, arguments, config.block_sizes)
    last = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return trainer
