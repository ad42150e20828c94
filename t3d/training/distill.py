"""Train a student by one of the methods, from rows of trajectories or labelled answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from t3d.methods import Compat, Method, build_method
from t3d.models import LanguageModel
from t3d.provenance import hash_weights, provenance, write_json
from t3d.training.config import TrainingConfig
from t3d.training.run import fit, remove_checkpoints
from t3d.training.trainer import TrainingCallback


@dataclass
class MethodConfig:
    """A method and what it changes of the published settings.

    Args:
        method: name in the table of methods.
        noiser: settings of its noiser to replace, such as level_power.
        objective: settings of its objective to replace, such as beta.
        reference_every: optimizer steps of a reference round, for methods with a reference.
        rounds: how many times trajectories are made, first by the teacher, then by the student.
        verify: whether the teacher's trajectory stands in for a student's with another answer.
        decoding: settings to replace where its trajectories are decoded, such as random_share.
        student_decoding: settings to replace further where the student's own are decoded.
        compat: upstream trains naive_td or t3d as the authors' released code does.
        num_sequences: training sequences, the first of the data; by default all.
        learning_rate: replaces that of the shared training settings.
    """

    method: str
    noiser: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    reference_every: int | None = None
    rounds: int | None = None
    verify: bool | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    student_decoding: dict[str, Any] = field(default_factory=dict)
    compat: Compat | None = None
    num_sequences: int | None = None
    learning_rate: float | None = None

    def build(self) -> Method:
        """The method with its settings replaced.

        Raises:
            ValueError: for an unknown method or setting, or a value that does not fit.
        """
        if self.num_sequences is not None and self.num_sequences < 1:
            raise ValueError(
                f"method {self.method}: num_sequences must be at least 1, got {self.num_sequences}"
            )
        return build_method(
            self.method,
            noiser=self.noiser,
            objective=self.objective,
            reference_every=self.reference_every,
            rounds=self.rounds,
            verify=self.verify,
            decoding=self.decoding,
            student_decoding=self.student_decoding,
            compat=self.compat,
        )


def distill(
    lm: LanguageModel,
    rows: Sequence[dict[str, Any]],
    config: MethodConfig,
    training: TrainingConfig,
    output: Path,
    *,
    teacher: LanguageModel | None = None,
    callbacks: Sequence[TrainingCallback] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Train `lm` in place by one round of a method, and save it with its provenance.

    A killed run continues from its last checkpoint. Of several processes the first one writes.

    Args:
        lm: where the student starts.
        rows: training sequences as `training_row` or `labelled_row` make them.
        config: the method.
        training: optimisation.
        output: directory of the student; with `training.lora` its adapter is in adapter/ there.
        teacher: for methods that need one; by default a copy of `lm`.
        callbacks: told of every optimizer step.
        progress: show a progress bar.

    Returns:
        The provenance, with `optimizer_steps` and `tokens_seen`.

    Raises:
        ValueError: for an unknown method or setting, or fewer sequences than one batch takes.
    """
    method = config.build()
    if config.learning_rate is not None:
        training = replace(training, learning_rate=config.learning_rate)
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
        config={"method": asdict(config), "training": asdict(training)},
        seed=training.seed,
        model=lm.name,
        weights_hash=hash_weights(output),
    )
    record["optimizer_steps"] = trainer.state.global_step
    record["tokens_seen"] = trainer.state.num_input_tokens_seen
    if trainer.args.should_save:
        write_json(output / "provenance.json", record)
        remove_checkpoints(directory)
    trainer.accelerator.wait_for_everyone()
    return record
