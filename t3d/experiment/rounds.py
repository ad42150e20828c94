"""Training of one student of a recipe: its data, and its rounds."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from accelerate import PartialState

from t3d.core.files import plain, read_object, write_json
from t3d.core.progress import stage
from t3d.core.provenance import COSTS, hash_weights, provenance
from t3d.core.rng import derive_key
from t3d.core.workers import alone, launched
from t3d.decoding.config import RolloutConfig
from t3d.decoding.rollout import rollout
from t3d.evaluation.results import ORIGINAL
from t3d.experiment.grid import identify
from t3d.experiment.recipe import RunConfig
from t3d.experiment.reinforcement import tell
from t3d.experiment.rows import (
    own_rollout,
    own_rounds,
    own_training,
    recorded_rows,
    reinforced_rows,
    store_path,
    train_prompts,
)
from t3d.experiment.watch import Watch
from t3d.models import LanguageModel, from_pretrained
from t3d.tasks import mixture
from t3d.training.arguments import training_arguments, uses_deepspeed
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.distill import distill
from t3d.training.methods import build_method
from t3d.training.sharding import load_student


def self_distilled(config: RunConfig) -> list[str]:
    """The methods of a recipe that learn from what the teacher decodes, without labels."""
    methods = config.methods.items()
    return [name for name, own in methods if build_method(own).data == "trajectories"]


def check_recipe(config: RunConfig) -> None:
    """Check a recipe before any model or benchmark is read, for `t3d run` and its `--dry_run`.

    Raises:
        ValueError: for settings that do not fit.
    """
    config.check_prompts()
    training, is_apart = config.training, config.num_workers > 1 or trains_apart(config)
    if is_apart:
        # Each student will be trained on one device, whichever this process sees.
        training = replace(training, trainer=training.trainer | {"use_cpu": True})
    for name, method in config.methods.items():
        if name == ORIGINAL:
            raise ValueError(f"methods: {ORIGINAL!r} is the teacher's own name; choose another")
        if not name.strip() or Path(name).name != name or name.startswith(".") or "\0" in name:
            raise ValueError(f"methods: {name!r} is to name a directory; choose another name")
        with alone() if is_apart else nullcontext():
            check_training(method, training, config.data.num_sequences, config.output)
        for student in (False, True):
            own_rollout(config, method, student=student)
        start, earlier = method.start, list(config.methods)[: list(config.methods).index(name)]
        if start is None or start in earlier:
            continue
        if start in config.methods or identify(Path(start)).method == ORIGINAL:
            raise ValueError(
                f"methods: {name}: start={start!r} is neither a method that the recipe "
                "names before it nor the directory of a student"
            )


def trains_apart(config: RunConfig) -> bool:
    """Whether each of a launcher's processes trains students of its own.

    They train every student together where weights are split over them, or where there are fewer
    students than processes.
    """
    _, num_processes = launched()
    is_whole = config.training.sharding == "none" and not uses_deepspeed(config.training)
    num_students = len(config.methods) * max(1, len(config.seeds))
    return is_whole and 1 < num_processes <= num_students


Part = tuple[int, int]
"""Number of a worker, and how many workers share the work."""


def parts(config: RunConfig) -> list[Part | None]:
    """The parts into which workers divide the rollouts; None stands for the whole."""
    num = config.num_workers
    return [None] if num == 1 else [(number, num) for number in range(num)]


def teacher_rollouts(config: RunConfig) -> dict[Path, tuple[str, RolloutConfig]]:
    """The teacher's stores, one for every decoding setting that a method asks for.

    Each has the name of its stage and the settings of its rollout.
    """
    stores = {config.output / "trajectories": ("rollout", config.rollout)}
    for name, method in config.methods.items():
        if build_method(method).data == "trajectories":
            own = f"rollout for {name}", own_rollout(config, method)
            stores.setdefault(store_path(config, method), own)
    return stores


def rollout_stage(name: str, part: Part | None) -> str:
    return name if part is None else f"{name}, part {part[0] + 1} of {part[1]}"


def record_trajectories(config: RunConfig, *, part: Part | None = None, progress: bool) -> None:
    """Roll the teacher out into all stores of the recipe; it is in memory no longer than that.

    Args:
        part: part of the prompts that this process decodes, see `rollout`.
    """
    teacher = from_pretrained(config.model, dtype=config.dtype)
    prompts = train_prompts(config)
    for path, (name, settings) in teacher_rollouts(config).items():
        with stage(rollout_stage(name, part)):
            rollout(teacher, prompts, path, settings, part=part, progress=progress)


def student_work(config: RunConfig, method: MethodConfig) -> dict[str, int]:
    """Largest amount of work of `train_student`, by unit."""
    built, training = build_method(method), own_training(method, config.training)
    if built.advantage is not None:
        return {"step": training.steps, "prompt": training.steps * training.batch_size}
    num, sequences = training.steps // built.rounds * training.batch_size, config.data.num_sequences
    num = min(method.num_sequences or sequences, sequences, num)
    return {"step": training.steps, "prompt": own_rounds(method) * num}


def start_path(config: RunConfig, method: MethodConfig, output: Path) -> Path | None:
    """The student that the one at `output` starts from; None if it starts from the teacher."""
    if method.start is None:
        return None
    checkpoints = config.output / "checkpoints"
    _, *seed = output.relative_to(checkpoints).parts
    return (
        checkpoints.joinpath(method.start, *seed)
        if method.start in config.methods
        else Path(method.start)
    )


def is_trained(checkpoint: Path) -> bool:
    # This file is written last.
    return (checkpoint / "provenance.json").exists()


def train_student(
    config: RunConfig,
    method: MethodConfig,
    training: TrainingConfig,
    output: Path,
    *,
    progress: bool,
) -> None:
    """Train one student into `output` unless it is there.

    With several rounds, each takes its share of the optimizer and warm-up steps with a schedule
    of its own, at a learning rate that falls from round to round (`Method.decay`). From the second
    on, and where the student starts from another one from the first, it trains on trajectories that
    the student so far made, of as many prompts as it will read, and with `Method.verify` on the
    teacher's where the two end with other answers. With `Method.advantage` every round does so, and
    sees each response that teaches something once; one in which none does leaves the student as it
    is. Of the rounds before the last one only the provenance is kept.

    Processes that `torchrun` starts call it alike: they share rollouts and training, and of them
    the first one writes.
    """
    if is_trained(output):
        return
    built, training = build_method(method), own_training(method, training)
    rounds = config.output / "rounds" / output.relative_to(config.output / "checkpoints")
    # A student with a start is complete once its costs hold those of the start, so it comes to its
    # place in one step, as after several rounds: others may wait for it.
    several = built.rounds > 1 or method.start is not None or built.advantage is not None
    directories = [rounds / f"round{n}" for n in range(built.rounds)] if several else [output]
    start = start_path(config, method, output)
    last = first = config.model if start is None else start
    records = [] if start is None else [read_object(start / "provenance.json")]

    def own_records() -> list[dict[str, Any]]:
        return records[start is not None :]

    share, rest = divmod(training.steps, built.rounds)
    steps = [share + (number < rest) for number in range(built.rounds)]
    # Where a student was deleted to be trained anew, no weights are left to go on from.
    kept = [is_trained(path) and (path / "config.json").exists() for path in directories]
    num_done = max((number for number, there in enumerate(kept, 1) if there), default=0)
    for number, directory in enumerate(directories):
        own = replace(
            training,
            steps=steps[number],
            learning_rate=training.learning_rate * built.round_rate(number),
            warmup_steps=round(training.warmup_steps / built.rounds),
            seed=derive_key(training.seed, "round", number) % 2**31 if several else training.seed,
        )
        with stage(f"round {number + 1} of {built.rounds}") if several else nullcontext():
            if number >= num_done:
                # It marks a round as finished, which one that is trained anew is not yet.
                (directory / "provenance.json").unlink(missing_ok=True)
                rows_of = recorded_rows if built.advantage is None else reinforced_rows
                path = rounds / f"trajectories{number}"
                done = sum(steps[:number])
                rows, own, notes = rows_of(config, method, own, last, done, path, progress=progress)
                # Decoding has its own number format, and training takes float32.
                if rows:
                    student = load_student(str(last), own.sharding)
                    # By default the teacher is a copy of the student as it is given.
                    needs_other = built.objective.needs_teacher and last != first
                    distill(
                        student,
                        rows,
                        replace(method, learning_rate=None),
                        own,
                        directory,
                        teacher=from_pretrained(first, dtype=training.frozen_dtype)
                        if needs_other
                        else None,
                        callbacks=_watch(config, student, directories, own_records()),
                        notes=notes,
                        progress=progress,
                    )
                else:
                    _write_unchanged(from_pretrained(last), method, own, directory, notes)
            if number:
                _remove_weights(directories[number - 1])
        records.append(read_object(directory / "provenance.json"))
        if "reward" in records[-1]:
            tell(number, records[-1], own_records()[0]["reward"])
        last = directory
    # What moves to its place is read by nobody any more.
    PartialState().wait_for_everyone()
    # The arguments say which process writes, even where all rounds were trained before.
    if training_arguments(training, output).should_save:
        _finish(method, training, records, len(directories), directories[-1], output)
    PartialState().wait_for_everyone()


def _finish(
    method: MethodConfig,
    training: TrainingConfig,
    records: list[dict[str, Any]],
    num_rounds: int,
    last: Path,
    output: Path,
) -> None:
    """Make the last round's directory the checkpoint, and its provenance that of all rounds.

    Steps of the log count on from round to round.

    Args:
        records: the provenance of every round, and before them of the student that it started from.
    """
    record = records[-1]
    if "rounds" not in record:
        own = records[-num_rounds:]
        before = accumulate((r["optimizer_steps"] for r in own), initial=0)
        record["log"] = [
            row | {"step": row["step"] + done}
            for done, r in zip(before, own, strict=False)
            for row in r["log"]
        ]
        for key in COSTS:
            counts: list[Any] = [r.get(key) for r in records]
            # Students of earlier versions do not tell what was decoded for them.
            record[key] = None if None in counts else sum(counts)
        record |= {"rounds": num_rounds, "seed": training.seed, "model": records[0]["model"]}
        record["config"] = plain({"method": asdict(method), "training": asdict(training)})
        write_json(last / "provenance.json", record)
    output.parent.mkdir(parents=True, exist_ok=True)
    if last != output:
        last.rename(output)


def _write_unchanged(
    student: LanguageModel,
    method: MethodConfig,
    training: TrainingConfig,
    directory: Path,
    notes: dict[str, Any],
) -> None:
    """Write a round that had nothing to train on; processes wait until the first one has."""
    if PartialState().is_main_process:
        student.save(directory)
        record = provenance(
            config={"method": asdict(method), "training": asdict(training)},
            seed=training.seed,
            model=student.name,
            weights_hash=hash_weights(directory),
        )
        nothing = {"optimizer_steps": 0, "tokens_seen": 0, "log": []}
        write_json(directory / "provenance.json", record | notes | nothing)
    PartialState().wait_for_everyone()


def _remove_weights(directory: Path) -> None:
    """Leave only the provenance of a round whose student is needed no more."""
    if PartialState().is_main_process:
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "provenance.json":
                path.unlink()


def _watch(
    config: RunConfig,
    student: LanguageModel,
    directories: list[Path],
    records: list[dict[str, Any]],
) -> list[Watch]:
    """The callback that evaluates a student while it trains, if the recipe asks for it.

    Args:
        directories: those of all rounds; several share one log and one best checkpoint.
        records: the provenance of the rounds before.
    """
    if config.watch is None:
        return []
    task = mixture(config.problem_sets())
    problems = task.examples("dev", config.watch.num_problems)
    several = len(directories) > 1
    return [
        Watch(
            student,
            task,
            problems,
            config.watch,
            directory=directories[0].parent if several else None,
            num_before=sum(record["optimizer_steps"] for record in records),
            is_last=len(records) + 1 == len(directories),
        )
    ]


def check_training(
    method: MethodConfig | None, config: TrainingConfig, num_sequences: int, output: Path
) -> None:
    """Raise ValueError for errors that training would meet; a method of None is pretraining."""
    if method is not None:
        rounds = build_method(method).rounds
        advantage = build_method(method).advantage
        num_sequences = min(num_sequences, method.num_sequences or num_sequences)
        config = own_training(method, config)
        if config.steps < rounds:
            raise ValueError(
                f"method {method.method!r}: {rounds} rounds need as many optimizer steps, "
                f"got steps={config.steps}"
            )
        if advantage is not None:
            num_sequences *= advantage.group_size
            if config.batch_size % advantage.group_size:
                raise ValueError(
                    f"method {method.method!r}: batch_size={config.batch_size} is no multiple of "
                    f"advantage.group_size={advantage.group_size}; change one of them"
                )
    training_arguments(config, output)
    config.check_enough(num_sequences)
