"""Train a student by one of the methods, from rows of trajectories or labelled answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from t3d.models import LanguageModel
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.methods import build_method
from t3d.training.run import train
from t3d.training.trainer import TrainingCallback


def distill(
    lm: LanguageModel,
    rows: Sequence[dict[str, Any]],
    config: MethodConfig,
    training: TrainingConfig,
    output: Path,
    *,
    teacher: LanguageModel | None = None,
    callbacks: Sequence[TrainingCallback] = (),
    notes: dict[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train `lm` in place by one round of a method, and save it with its provenance.

    A killed run continues from its last checkpoint. Of several processes the first one writes.

    >>> import tempfile
    >>> from pathlib import Path
    >>> lm = t3d.from_pretrained("mini_teacher")
    >>> examples = t3d.get_task("mini_gsm").examples("train", 2)
    >>> training = t3d.TrainingConfig(steps=1, batch_size=2, micro_batch_size=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = t3d.RolloutConfig(t3d.DecodingConfig(max_new_tokens=96))
    ...     store = t3d.rollout(lm, examples, Path(folder, "store"), config, progress=False)
    ...     rows, method = t3d.training_rows(store.read()), t3d.MethodConfig("t3d")
    ...     output = Path(folder, "student")
    ...     record = t3d.distill(lm, rows, method, training, output, progress=False)
    >>> record["optimizer_steps"]
    1

    Args:
        lm: the model that is trained.
        rows: training sequences as `training_row` or `labelled_row` make them.
        config: the method and its changes.
        training: settings of the optimisation.
        output: directory of the student; with `training.lora` its adapter is in adapter/ there.
        teacher: the frozen model of methods that need one; by default a copy of `lm`.
        callbacks: callbacks that transformers calls at every optimizer step.
        notes: further keys of the provenance.
        progress: show a progress bar.

    Returns:
        The provenance, with `optimizer_steps` and `tokens_seen`.

    Raises:
        ValueError: for an unknown method or setting, or fewer sequences than one batch takes.
    """
    method = build_method(config)
    if config.learning_rate is not None:
        training = replace(training, learning_rate=config.learning_rate)
    return train(
        lm,
        method,
        rows,
        training,
        output,
        config={"method": asdict(config), "training": asdict(training)},
        notes=notes,
        teacher=teacher,
        callbacks=callbacks,
        progress=progress,
    )
