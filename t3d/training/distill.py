"""Distil a teacher's trajectories into a student by one of the methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from t3d.methods import Method, build_method
from t3d.models import LanguageModel
from t3d.provenance import hash_weights, provenance, write_json
from t3d.training.config import TrainingConfig
from t3d.training.run import fit
from t3d.trajectory import Trajectory, training_row


@dataclass
class MethodConfig:
    """A method and what it changes of the published settings.

    Args:
        method: name in the table of methods.
        noiser: settings of its noiser to replace, such as level_power.
        objective: settings of its objective to replace, such as beta.
        reference_every: optimizer steps of a round, for methods with a reference.
        learning_rate: replaces that of the shared training settings.
    """

    method: str
    noiser: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    reference_every: int | None = None
    learning_rate: float | None = None

    def build(self) -> Method:
        """The method with its settings replaced.

        Raises:
            ValueError: for an unknown method or setting, or a method that needs labels.
        """
        method = build_method(
            self.method,
            noiser=self.noiser,
            objective=self.objective,
            reference_every=self.reference_every,
        )
        if method.data != "trajectories":
            raise ValueError(f"method {self.method!r} trains on labelled answers; use t3d pretrain")
        return method


def distill(
    lm: LanguageModel,
    trajectories: Sequence[Trajectory],
    config: MethodConfig,
    training: TrainingConfig,
    output: Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Train `lm`, a copy of the teacher, in place, and save it with its provenance.

    A killed run continues from its last saved step.

    Returns:
        The provenance, with `optimizer_steps` and `tokens_seen`.

    Raises:
        ValueError: for an unknown method or setting, or one that needs labels.
    """
    method = config.build()
    if config.learning_rate is not None:
        training = TrainingConfig(**{**asdict(training), "learning_rate": config.learning_rate})
    rows = [training_row(trajectory, index) for index, trajectory in enumerate(trajectories)]
    directory = output.parent / f".{output.name}.training"
    trainer = fit(lm, method, rows, training, directory, progress=progress)
    lm.save(output)
    record = provenance(
        config={"method": asdict(config), "training": asdict(training)},
        seed=training.seed,
        model=lm.name,
        weights_hash=hash_weights(output),
    )
    record["optimizer_steps"] = trainer.state.global_step
    record["tokens_seen"] = trainer.state.num_input_tokens_seen
    write_json(output / "provenance.json", record)
    return record
