"""The whole route from one recipe: rollout, distill, evaluate, report; resumes where it stopped.

A comparison is a run with several seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from t3d.core.dtypes import torch_dtype
from t3d.core.files import claim
from t3d.core.progress import display
from t3d.core.provenance import provenance
from t3d.core.workers import check_workers, launched, own_device
from t3d.decoding.build import load_draft_model
from t3d.decoding.config import DYNAMIC, DecodingConfig, labels, one_line
from t3d.decoding.rollout import encode_prompts
from t3d.evaluation.comparison import Comparison
from t3d.evaluation.evaluate import Evaluation, is_finished
from t3d.evaluation.results import Cell
from t3d.evaluation.samples import Sample
from t3d.experiment.adapt import with_teacher
from t3d.experiment.grid import check_evaluation
from t3d.experiment.recipe import RunConfig
from t3d.experiment.reinforcement import check_rewards
from t3d.experiment.rounds import check_recipe, self_distilled
from t3d.experiment.rows import own_rollout, train_prompts
from t3d.experiment.units import (
    TEACHER,
    Unit,
    evaluate_unit,
    evaluation_directory,
    finished,
    problems_of,
    stages,
    units_of,
)
from t3d.models import LanguageModel, from_pretrained
from t3d.report.comparison import write_comparison
from t3d.report.trajectories import Problem, view_of
from t3d.tasks import Example
from t3d.training.methods import build_method
from t3d.training.pretrain import check_labelled

_SHARED = ("model", "dtype", "task", "data", "rollout", "training", "evaluation")
"""Keys of the recipe that every row depends on; methods and seeds may be added later."""


def run(config: RunConfig, *, progress: bool = True) -> list[Cell]:
    """Walk the route for every method and seed; what an earlier, killed run has finished is kept.

    `results.json` is written anew after every finished student.

    For an example see `RunConfig`.

    Returns:
        What was evaluated, the teacher first. Processes that `torchrun` starts share rollouts,
        training and evaluation; all but the first return nothing.

    Raises:
        ValueError: for settings that do not fit, before anything is written, and for a
            directory that holds a run under another budget.
    """
    return walk(config, progress=progress)[0]


def compare(config: RunConfig, *, progress: bool = True) -> Comparison:
    """The same as `run`, but returns statistics: accuracies and differences with intervals.

    For an example see `CompareConfig`.
    """
    return Comparison(run(config, progress=progress))


def walk(config: RunConfig, *, progress: bool = True) -> tuple[list[Cell], list[Problem]]:
    """The same as `run`, but returns the decoded problems that the report shows as well."""
    settings = config.evaluation.settings
    # Latency is measured last, when workers leave the machine to that alone.
    is_shared = config.num_workers > 1 and config.evaluation.measure_latency
    untimed = [s for s in settings if s.remasking != DYNAMIC or not is_shared]
    units = units_of(config)
    with display(stages(config, units, untimed), show=progress, num_workers=config.num_workers):
        config = with_teacher(config, progress=progress)
        teacher, problems = prepare(config)
        recipe: dict[str, Any] = asdict(config) | {"dtype": teacher.dtype}
        shared = {key: recipe[key] for key in _SHARED}
        # Students lie in folders of their seeds where seeds are named.
        shared["by_seed"] = bool(config.seeds)
        claim(config.output, shared, teacher.weights_hash)
        for name, method in recipe["methods"].items():
            claim(config.output / "methods" / name, method, teacher.weights_hash)
        record = provenance(
            config=recipe,
            seed=config.training.seed,
            model=config.model,
            weights_hash=teacher.weights_hash,
        )

        known: _Evaluations = {}

        def report() -> tuple[list[Cell], list[Problem]]:
            evaluations = _evaluations(config, units, known)
            cells = [cell for cell, _ in evaluations.values()]
            shown = _problem_views(
                config, teacher, problems[: config.evaluation.num_shown], units, evaluations
            )
            write_comparison(
                config.output,
                cells,
                recommended=config.recommended,
                self_distilled=self_distilled(config),
                provenance=record,
                problems=shown,
            )
            return cells, shown

        rank, _ = launched()
        for _ in finished(config, units, untimed, progress=progress):
            if rank == 0:
                report()
        if rank > 0:
            return [], []
        for unit in (TEACHER, *units):
            evaluate_unit(config, unit, settings, is_alone=True, progress=progress)
    return report()


def prepare(config: RunConfig) -> tuple[LanguageModel, list[Example]]:
    """The teacher and the first task's problems, of a recipe in which everything fits together.

    Raises:
        ValueError: for settings that do not fit; nothing has been written then.
    """
    check_workers(config.num_workers)
    check_recipe(config)
    # Text and shapes are all that is needed of it here, so no weight stays on the device.
    dtype = torch_dtype(config.dtype, own_device())
    teacher = from_pretrained(config.model, device="meta", dtype=dtype)
    prompts = train_prompts(config)
    decodings = {
        own_rollout(config, method, student=student).decoding
        for method in config.methods.values()
        for student in (False, True)
    }
    for decoding in decodings | {config.rollout.decoding}:
        encode_prompts(teacher, prompts, decoding)
        load_draft_model(teacher, decoding)
    for name, method in config.methods.items():
        built = build_method(method)
        if built.advantage is not None:
            check_rewards(built.advantage, prompts)
        elif built.data == "labelled":
            check_labelled(teacher, prompts, max(config.training.block_sizes))
        if method.start is not None and method.start not in config.methods:
            student = from_pretrained(method.start, device="meta")
            if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
                raise ValueError(
                    f"methods: {name}: start={method.start!r} has another tokenizer than "
                    f"{teacher.name}; start from a student of that model"
                )
    first: list[Example] = []
    for name, task in zip(config.tasks, config.problem_sets(), strict=True):
        problems = problems_of(config, task)
        # A task's own splits are kept apart where they are made.
        is_own = config.data.prompts is None and len(config.tasks) == 1
        asked = {
            prompt.asks
            for prompt in prompts
            if not is_own and not prompt.id.startswith(f"{task.name}:")
        }
        shared = next((problem.id for problem in problems if problem.asks in asked), None)
        if shared is not None:
            source = config.data.prompts or f"the training file of another task than {name}"
            raise ValueError(
                f"{source}: asks what problem {shared} of {name} asks; "
                "train on other questions than those that are evaluated"
            )
        check_evaluation(teacher, problems, config.evaluation)
        first = first or problems
    return teacher, first


_Evaluations = dict[tuple[Unit, str, DecodingConfig], tuple[Cell, list[Sample]]]
"""Results, and as many samples as the report shows: all of a large comparison's take gigabytes."""


def _evaluations(config: RunConfig, units: Sequence[Unit], known: _Evaluations) -> _Evaluations:
    """All finished evaluations, sorted by method (in the recipe's order), task and setting.

    Args:
        known: those that were read before, which no longer change; what is read joins them.
    """
    order = list(config.methods)
    tasks = config.problem_sets()
    out: _Evaluations = {}
    for unit in (TEACHER, *sorted(units, key=lambda unit: order.index(unit.method))):
        for task in tasks:
            for setting in config.evaluation.settings:
                path = evaluation_directory(config, unit, task) / setting.name
                key = unit, task.name, setting
                if key not in known and is_finished(path):
                    found = Evaluation.load(path)
                    known[key] = found.cell, found.samples[: config.evaluation.num_shown]
                if key in known:
                    out[key] = known[key]
    return out


def _problem_views(
    config: RunConfig,
    lm: LanguageModel,
    problems: Sequence[Example],
    units: Sequence[Unit],
    evaluations: _Evaluations,
) -> list[Problem]:
    """The first task's first problems as every method decoded them, slowest setting first."""
    task = config.problem_sets()[0].name
    names = labels(config.evaluation.settings)
    first = {unit.method: unit for unit in reversed((TEACHER, *units))}
    out: list[Problem] = []
    for number, example in enumerate(problems):
        views = []
        for unit in (TEACHER, *(first[name] for name in config.methods)):
            for setting in config.evaluation.settings:
                if (found := evaluations.get((unit, task, setting))) is None:
                    continue
                sample = found[1][number]
                views.append(
                    view_of(
                        sample.completion,
                        lambda token: lm.text([token]),
                        title=f"{unit.method}, {one_line(names[setting])}",
                        prompt_length=len(sample.prompt_ids),
                        block_size=setting.window_size,
                        grade=sample.grade,
                    )
                )
        out.append((example.question, example.answer, views))
    return out
