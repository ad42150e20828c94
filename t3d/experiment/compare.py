"""Every method with every seed under one budget, evaluated alike: `t3d compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from t3d.core.files import claim
from t3d.core.progress import display
from t3d.core.provenance import provenance
from t3d.evaluation.evaluate import Evaluation, is_finished
from t3d.evaluation.results import DYNAMIC, Cell
from t3d.experiment.adapt import with_teacher
from t3d.experiment.grid import file_name
from t3d.experiment.recipe import CompareConfig
from t3d.experiment.run import TEACHER, Unit, evaluate_unit, finished, prepare, stages
from t3d.report.comparison import write_comparison

_SHARED = ("model", "task", "data", "rollout", "training", "evaluation")
"""Parts of the recipe that every row depends on; methods and seeds may be added later."""


def compare(config: CompareConfig, *, progress: bool = True) -> list[Cell]:
    """Train and evaluate what an earlier, killed comparison has not finished, and report.

    `results.json` is written anew after every finished student. Settings that measure speed
    (dynamic decoding) are evaluated at the end, one after another with the machine to themselves.

    Raises:
        ValueError: for settings that do not fit, before anything is written, and for a
            directory that holds a comparison under another budget.
    """
    settings = config.evaluation.settings
    # The table of speed reads them.
    timed = [s for s in settings if s.remasking == DYNAMIC]
    untimed = [s for s in settings if s not in timed]
    units = _units(config)
    plan = stages(config, units, untimed)
    with display(plan, show=progress, num_workers=config.num_workers):
        config = with_teacher(config, progress=progress)
        teacher, _ = prepare(config)
        recipe = asdict(config)
        claim(config.output, {key: recipe[key] for key in _SHARED}, teacher.weights_hash)
        for name, method in recipe["methods"].items():
            claim(config.output / "methods" / name, method, teacher.weights_hash)
        for _ in finished(config, teacher, units, untimed, progress=progress):
            _write(config, teacher.weights_hash)
        for unit in (TEACHER, *units):
            evaluate_unit(config, unit, timed, timed=True, progress=progress)
    _write(config, teacher.weights_hash)
    return read_cells(config)


def _units(config: CompareConfig) -> list[Unit]:
    """Methods with all seeds, one seed after the other."""
    return [
        Unit(name, seed, Path(name, f"seed{seed}"))
        for seed in config.seeds
        for name in config.methods
    ]


def read_cells(config: CompareConfig) -> list[Cell]:
    """All that has been evaluated so far, methods in the recipe's order."""
    order = list(config.methods)
    units = sorted(_units(config), key=lambda unit: order.index(unit.method))
    cells = []
    for unit in (TEACHER, *units):
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
