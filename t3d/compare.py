"""Every method with every seed under one budget, evaluated alike: `t3d compare`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from t3d.adapt import with_teacher
from t3d.decoding.config import DecodingConfig
from t3d.evaluation.evaluate import Evaluation, Identity, is_finished
from t3d.evaluation.results import ORIGINAL, Cell
from t3d.grid import evaluate_settings, file_name, identify
from t3d.pipeline import preparation, prepare
from t3d.progress import display, hear, stage
from t3d.provenance import claim, provenance
from t3d.recipe import CompareConfig
from t3d.report.comparison import write_comparison
from t3d.students import record_trajectories, student_work, train_student
from t3d.tasks import Example
from t3d.workers import pool

_SHARED = ("model", "task", "data", "rollout", "training", "evaluation")
"""Parts of the recipe that every row depends on; methods and seeds may be added later."""
_ORIGINAL, _TIMED = f"evaluation of {ORIGINAL}", "evaluation of speed"
"""Stages beside the students'."""


@dataclass(frozen=True)
class Unit:
    """One method with one seed."""

    method: str
    seed: int

    @property
    def path(self) -> Path:
        return Path(self.method, f"seed{self.seed}")


def compare(config: CompareConfig, *, progress: bool = True) -> list[Cell]:
    """Train and evaluate what an earlier, killed comparison has not finished, and report.

    `results.json` is written anew after every finished student. Settings that measure speed
    (dynamic decoding) are evaluated at the end, one after another with the machine to themselves.

    Raises:
        ValueError: for settings that do not fit, before anything is written, and for a
            directory that holds a comparison under another budget.
    """
    with display(stages(config), show=progress, num_workers=config.num_workers):
        return _compare(config, progress=progress)


def _compare(config: CompareConfig, *, progress: bool) -> list[Cell]:
    config = with_teacher(config, progress=progress)
    teacher, problems = prepare(config)
    recipe = asdict(config)
    claim(config.output, {key: recipe[key] for key in _SHARED}, teacher.weights_hash)
    for name, method in recipe["methods"].items():
        claim(config.output / "methods" / name, method, teacher.weights_hash)
    record_trajectories(config, teacher, progress=progress)
    original = Unit(ORIGINAL, 0)
    with stage(_ORIGINAL):
        evaluate_unit(config, original, problems, timed=False, progress=progress)
    units = students(config)
    for _ in _finished(config, units, progress=progress):
        _write(config, teacher.weights_hash)
    with stage(_TIMED):
        for unit in (original, *units):
            with stage(f"{unit.method}, seed {unit.seed}"):
                evaluate_unit(config, unit, problems, timed=True, progress=progress)
    _write(config, teacher.weights_hash)
    return read_cells(config)


def students(config: CompareConfig) -> list[Unit]:
    """Everything that is trained, in order."""
    return [Unit(name, seed) for seed in config.seeds for name in config.methods]


def stages(config: CompareConfig) -> dict[str, dict[str, int]]:
    """What a comparison has before it, for `t3d.progress`."""
    units = students(config)
    is_timed = [_is_timed(setting) for setting in config.evaluation.settings]
    timed, others = (is_timed.count(which) * config.data.num_problems for which in (True, False))
    plan = preparation(config) | {_ORIGINAL: {"prompt": others}}
    for unit in units:
        work = student_work(config, config.methods[unit.method])
        plan[_title(config, unit)] = work | {"prompt": work["prompt"] + others}
    return plan | ({_TIMED: {"prompt": timed * (1 + len(units))}} if timed else {})


def _title(config: CompareConfig, unit: Unit) -> str:
    units = students(config)
    return f"student {units.index(unit) + 1} of {len(units)}: {unit.method}, seed {unit.seed}"


def _is_timed(setting: DecodingConfig) -> bool:
    """Whether the table of speed reads this setting."""
    return setting.remasking == "low_confidence_dynamic"


def _finished(config: CompareConfig, units: Sequence[Unit], *, progress: bool) -> Iterator[Unit]:
    """Units as they are done, by as many processes as the recipe says."""
    if config.num_workers == 1:
        for unit in units:
            work(config, unit, progress=progress)
            yield unit
        return
    with pool(config.num_workers, hear) as workers:
        futures = {workers.submit(work, config, unit, progress=progress): unit for unit in units}
        for future in as_completed(futures):
            future.result()
            yield futures[future]


def work(config: CompareConfig, unit: Unit, *, progress: bool) -> None:
    """Train one student and evaluate it under the static settings."""
    with stage(_title(config, unit)):
        train_student(
            config,
            config.methods[unit.method],
            replace(config.training, seed=unit.seed),
            config.output / "checkpoints" / unit.path,
            progress=progress,
        )
        problems = config.problem_set().examples(config.data.split, config.data.num_problems)
        evaluate_unit(config, unit, problems, timed=False, progress=progress)


def evaluate_unit(
    config: CompareConfig,
    unit: Unit,
    problems: Sequence[Example],
    *,
    timed: bool,
    progress: bool,
) -> None:
    """Evaluate one checkpoint under the settings that are timed, or under the others."""
    settings = tuple(s for s in config.evaluation.settings if _is_timed(s) == timed)
    if not settings:
        return
    latency = config.evaluation.measure_latency and timed
    directory = config.output / "evaluation"
    checkpoint = config.output / "checkpoints" / unit.path
    is_original = unit.method == ORIGINAL
    evaluate_settings(
        config.model if is_original else checkpoint,
        Identity(ORIGINAL) if is_original else identify(checkpoint, unit.method),
        config.problem_set(),
        problems,
        replace(config.evaluation, settings=settings, measure_latency=latency),
        directory / unit.path,
        full=directory / ORIGINAL / "seed0" / file_name(config.evaluation.settings[0]),
        progress=progress,
    )


def read_cells(config: CompareConfig) -> list[Cell]:
    """All that has been evaluated so far, methods in the recipe's order."""
    units = [Unit(ORIGINAL, 0)]
    units += [Unit(name, seed) for name in config.methods for seed in config.seeds]
    cells = []
    for unit in units:
        for setting in config.evaluation.settings:
            path = config.output / "evaluation" / unit.path / file_name(setting)
            if is_finished(path):
                evaluation = Evaluation.load(path)
                correct = tuple(sample.grade.correct for sample in evaluation.samples)
                cells.append(Cell(evaluation.row, correct))
    return cells


def _write(config: CompareConfig, weights_hash: str | None) -> None:
    record = provenance(
        config=asdict(config),
        seed=config.training.seed,
        model=config.model,
        weights_hash=weights_hash,
    )
    write_comparison(
        config.output, read_cells(config), recommended=config.recommended, provenance=record
    )
