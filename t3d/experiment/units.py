"""The checkpoints of a recipe, and the processes that train and evaluate them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t3d.core.progress import Plan, hear, stage
from t3d.core.workers import drawn, launched, pool
from t3d.decoding.config import DecodingConfig
from t3d.evaluation.evaluate import Identity
from t3d.evaluation.results import ORIGINAL
from t3d.experiment.grid import evaluate_settings, identify, stage_names
from t3d.experiment.recipe import RunConfig
from t3d.experiment.rounds import (
    Part,
    is_trained,
    parts,
    record_trajectories,
    rollout_stage,
    start_path,
    student_work,
    teacher_rollouts,
    train_student,
    trains_apart,
)
from t3d.tasks import Example, Task


def problems_of(config: RunConfig, task: Task) -> list[Example]:
    return task.examples(config.data.split, config.data.num_problems)


@dataclass(frozen=True)
class Unit:
    """A checkpoint of a recipe: one method with one seed."""

    method: str
    seed: int
    path: Path
    """Path of the checkpoint relative to checkpoints/, and of its evaluation relative to
        evaluation/."""

    @property
    def identity(self) -> Identity:
        return Identity(self.method, self.seed)


TEACHER = Unit(ORIGINAL, 0, Path(ORIGINAL))


def units_of(config: RunConfig) -> list[Unit]:
    """Methods with all seeds, one seed after the other."""
    return [
        Unit(name, seed, Path(name, f"seed{seed}") if config.seeds else Path(name))
        for seed in config.seeds or (config.training.seed,)
        for name in config.methods
    ]


def stages(
    config: RunConfig, units: Sequence[Unit], untimed: Sequence[DecodingConfig]
) -> dict[str, Mapping[str, int]]:
    """The plan of the run's stages, in the order in which `finished` does them."""
    _, num_processes = launched()
    plan: dict[str, Mapping[str, int]] = {}
    if config.adapt is not None:
        plan["teacher"] = {"step": config.adapt.pretrain.training.steps}
    for part in parts(config):
        for name, _ in teacher_rollouts(config).values():
            num = config.data.num_sequences // config.num_workers // num_processes
            plan[rollout_stage(name, part)] = {"prompt": num}
    titles = _titles(units)

    def evaluations(unit: Unit, settings: Sequence[DecodingConfig]) -> Plan:
        names = stage_names(unit.identity, config.evaluation.settings)
        num = config.data.num_problems * len(config.tasks) // num_processes
        return {names[setting]: {"prompt": num} for setting in settings}

    for unit in (TEACHER, *units):
        if unit != TEACHER:
            plan[titles[unit]] = student_work(config, config.methods[unit.method])
        plan |= evaluations(unit, untimed)
    timed = [setting for setting in config.evaluation.settings if setting not in untimed]
    for unit in (TEACHER, *units):
        plan |= evaluations(unit, timed)
    return plan


def _titles(units: Sequence[Unit]) -> dict[Unit, str]:
    """The stage's name for the training of each unit."""
    return {
        unit: f"student {number} of {len(units)}: {unit.method}, seed {unit.seed}"
        for number, unit in enumerate(units, 1)
    }


def finished(
    config: RunConfig,
    units: Sequence[Unit],
    settings: Sequence[DecodingConfig],
    *,
    progress: bool,
) -> Iterator[Unit]:
    """Train and evaluate units with the recipe's processes, and yield each when it is finished.

    Processes of a launcher call it alike.

    Args:
        config: the recipe; its trajectories are recorded first, and its teacher is evaluated.
        units: checkpoints to train, in this order.
        settings: decoding settings that are evaluated while other work goes on.
    """
    titles = _titles(units)
    if config.num_workers == 1:
        record_trajectories(config, progress=progress)
        evaluate_unit(config, TEACHER, settings, progress=progress)
        if trains_apart(config):
            _train_apart(config, titles, progress=progress)
        for unit in units:
            train_unit(config, unit, titles[unit], progress=progress)
            evaluate_unit(config, unit, settings, progress=progress)
            yield unit
        return
    with pool(config.num_workers, hear) as workers:
        first: list[Future[Any]] = [
            workers.submit(_record_part, config, part, progress=progress) for part in parts(config)
        ]
        # The teacher at full steps comes first, since all other rows are compared with it.
        full = [setting for setting in settings if setting == config.evaluation.settings[0]]
        first.append(workers.submit(evaluate_unit, config, TEACHER, full, progress=progress))
        for job in first:
            job.result()
        jobs: dict[Future[Any], Unit] = {}
        trained = {TEACHER}
        ahead = list(units)

        def train_more() -> None:
            """Begin with students whose start is there until all workers have one."""
            training = set(jobs.values()) - trained
            ready = [unit for unit in ahead if _has_start(config, unit)]
            for unit in ready[: config.num_workers - len(training)]:
                ahead.remove(unit)
                job = workers.submit(train_unit, config, unit, titles[unit], progress=progress)
                jobs[job] = unit

        def evaluate_later(unit: Unit, own: Sequence[DecodingConfig]) -> None:
            # One job a setting, so that no worker is idle at the end while another has many left.
            for setting in own:
                job = workers.submit(evaluate_unit, config, unit, [setting], progress=progress)
                jobs[job] = unit

        train_more()
        owed = [(TEACHER, [setting for setting in settings if setting not in full])]
        if not jobs:
            evaluate_later(*owed.pop())
        while jobs:
            for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                unit = jobs.pop(job)
                job.result()
                if unit not in trained:
                    trained.add(unit)
                    # Training takes longest, so it begins first.
                    train_more()
                    for evaluation in (*owed, (unit, settings)):
                        evaluate_later(*evaluation)
                    owed.clear()
                if unit not in jobs.values() and unit != TEACHER:
                    yield unit


def _has_start(config: RunConfig, unit: Unit) -> bool:
    """Whether the student that a unit starts from is trained."""
    start = start_path(config, config.methods[unit.method], checkpoint_of(config, unit))
    return start is None or is_trained(start)


def _train_apart(config: RunConfig, titles: Mapping[Unit, str], *, progress: bool) -> None:
    """Train all students, each by the first of the launcher's processes that is free.

    Those that start from another one are drawn last, after it, and wait for it.
    """
    units = sorted(titles, key=lambda unit: config.methods[unit.method].start in config.methods)
    # Trained in a process that the launcher does not know, or all would train every student.
    with pool(1, hear) as own:
        for number in drawn():
            if number >= len(units):
                break
            unit = units[number]
            while not _has_start(config, unit):
                time.sleep(0.2)
            if not is_trained(checkpoint_of(config, unit)):
                own.submit(train_unit, config, unit, titles[unit], progress=progress).result()
    # The launcher stops all processes where one fails, so nobody waits in vain.
    while not all(is_trained(checkpoint_of(config, unit)) for unit in units):
        time.sleep(0.2)


def checkpoint_of(config: RunConfig, unit: Unit) -> Path:
    return config.output / "checkpoints" / unit.path


def _record_part(config: RunConfig, part: Part | None, *, progress: bool) -> None:
    record_trajectories(config, part=part, progress=progress)


def train_unit(config: RunConfig, unit: Unit, title: str, *, progress: bool) -> None:
    """Train a student unless its checkpoint exists; `title` is the name of the stage."""
    with stage(title):
        train_student(
            config,
            config.methods[unit.method],
            replace(config.training, seed=unit.seed),
            checkpoint_of(config, unit),
            progress=progress,
        )


def evaluate_unit(
    config: RunConfig,
    unit: Unit,
    settings: Sequence[DecodingConfig],
    *,
    is_alone: bool = False,
    progress: bool,
) -> None:
    """Evaluate a checkpoint on all tasks under some of the recipe's settings, unless that is done.

    Args:
        is_alone: whether the machine does nothing else meanwhile, so that times can be measured.
    """
    checkpoint = checkpoint_of(config, unit)
    latency = config.evaluation.measure_latency and (is_alone or config.num_workers == 1)
    for task in config.problem_sets() if settings else ():
        evaluate_settings(
            config.model if unit == TEACHER else str(checkpoint),
            Identity(ORIGINAL) if unit == TEACHER else identify(checkpoint, unit.method),
            task,
            problems_of(config, task),
            replace(config.evaluation, measure_latency=latency),
            evaluation_directory(config, unit, task),
            dtype=config.dtype,
            settings=settings,
            full=evaluation_directory(config, TEACHER, task) / config.evaluation.settings[0].name,
            progress=progress,
        )


def evaluation_directory(config: RunConfig, unit: Unit, task: Task) -> Path:
    """The directory of a checkpoint's evaluations; one for each task where there are several."""
    directory = config.output / "evaluation" / unit.path
    return directory / task.name if len(config.tasks) > 1 else directory
