"""A recipe's teacher made of an autoregressive model: convert it, then adapt it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from t3d.core.files import ADAPTATION, RECIPE, check_output, claim
from t3d.core.progress import stage
from t3d.core.workers import launched
from t3d.experiment.recipe import RunConfig
from t3d.experiment.rounds import check_training, is_trained
from t3d.models.convert import convert
from t3d.training.pretrain import pretrain, read_lesson


def teacher_path(config: RunConfig) -> Path:
    """The directory of the adapted model."""
    return config.output / "teacher"


def with_teacher(config: RunConfig, *, progress: bool) -> RunConfig:
    """The recipe with its teacher's directory as `model`, made where `adapt` says how.

    A killed adaptation goes on from its last checkpoint.

    Raises:
        ValueError: for a source that cannot be converted, or settings that do not fit.
    """
    adapt = config.adapt
    if adapt is None:
        return config
    converted, teacher = config.output / "converted", teacher_path(config)
    _, num_processes = launched()
    if num_processes > 1 and not is_trained(teacher):
        raise ValueError(
            "adapt: one process makes the teacher; start the same command without a launcher, "
            f"stop it once {teacher} is there, and go on with several"
        )
    check_output(config.output, RECIPE, ADAPTATION)
    training = adapt.pretrain.training
    check_training(None, training, adapt.pretrain.num_examples, teacher)
    mark = config.output / ADAPTATION
    is_new = not mark.exists()
    claim(mark, asdict(adapt), None)
    if not is_trained(teacher):
        folder = adapt.pretrain.folder or config.data.folder
        settings = replace(adapt.pretrain, model=str(converted), folder=folder)
        try:
            if not converted.exists():
                convert(adapt.source, converted, block_size=min(training.block_sizes))
            lesson = read_lesson(settings)
        except ValueError:
            if is_new:
                # A failed conversion leaves no directory, so that a corrected recipe can use it.
                shutil.rmtree(mark)
                shutil.rmtree(converted, ignore_errors=True)
            raise
        with stage("teacher"):
            pretrain(settings, teacher, lesson=lesson, progress=progress)
    return replace(config, model=str(teacher))
