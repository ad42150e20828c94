"""The whole route from one recipe: rollout, distill, evaluate, report; resumes where it stopped.

A comparison is a run with several seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from t3d.core.files import claim
from t3d.core.progress import Plan, display, hear, stage
from t3d.core.provenance import provenance
from t3d.core.workers import launched, pool
from t3d.decoding.config import DYNAMIC, DecodingConfig, labels, one_line
from t3d.decoding.rollout import encode_prompts
from t3d.evaluation.comparison import Comparison
from t3d.evaluation.evaluate import Evaluation, Identity, is_finished
from t3d.evaluation.results import ORIGINAL, Cell
from t3d.experiment.adapt import with_teacher
from t3d.experiment.grid import (
    check_evaluation,
    evaluate_settings,
    identify,
    stage_names,
)
from t3d.experiment.recipe import RunConfig
from t3d.experiment.rounds import (
    Part,
    check_recipe,
    own_rollout,
    parts,
    record_trajectories,
    rollout_stage,
    student_work,
    teacher_rollouts,
    train_prompts,
    train_student,
)
from t3d.models import LanguageModel, from_pretrained
from t3d.report.comparison import write_comparison
from t3d.report.trajectories import Problem, view_of
from t3d.tasks import Example, Task

_SHARED = ("model", "task", "data", "rollout", "training", "evaluation")
"""Keys of the recipe that every row depends on; methods and seeds may be added later."""


def run(config: RunConfig, *, progress: bool = True) -> list[Cell]:
    """Walk the route for every method and seed; what an earlier, killed run has finished is kept.

    `results.json` is written anew after every finished student.

    For an example see `RunConfig`.

    Returns:
        What was evaluated, the teacher first. Of processes that `torchrun` starts, which share
        rollouts and training, the first one evaluates, and the others return nothing.

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
    units = _units(config)
    with display(stages(config, units, untimed), show=progress, num_workers=config.num_workers):
        config = with_teacher(config, progress=progress)
        teacher, problems = prepare(config)
        recipe = asdict(config)
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

        def report() -> tuple[list[Cell], list[Problem]]:
            evaluations = _evaluations(config, units)
            cells = [e.cell for e in evaluations.values()]
            shown = _problem_views(
                config, teacher, problems[: config.evaluation.num_shown], units, evaluations
            )
            write_comparison(
                config.output,
                cells,
                recommended=config.recommended,
                provenance=record,
                problems=shown,
            )
            return cells, shown

        for _ in finished(config, teacher, units, untimed, progress=progress):
            report()
        rank, _ = launched()
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
    if config.num_workers > 1 and launched()[1] > 1:
        raise ValueError("num_workers: the launcher's processes share the work; set it to 1")
    check_recipe(config)
    teacher = from_pretrained(config.model)
    prompts = train_prompts(config)
    decodings = {
        own_rollout(config, method, student=student).decoding
        for method in config.methods.values()
        for student in (False, True)
    }
    for decoding in decodings | {config.rollout.decoding}:
        encode_prompts(teacher, prompts, decoding)
    first: list[Example] = []
    for name, task in zip(config.tasks, config.problem_sets(), strict=True):
        problems = _problems(config, task)
        # A task's own splits are kept apart where they are made.
        is_own = config.data.prompts is None and len(config.tasks) == 1
        asked = {
            prompt.question
            for prompt in prompts
            if not is_own and not prompt.id.startswith(f"{task.name}:")
        }
        shared = next((problem.id for problem in problems if problem.question in asked), None)
        if shared is not None:
            source = config.data.prompts or f"the training file of another task than {name}"
            raise ValueError(
                f"{source}: asks what problem {shared} of {name} asks; "
                "train on other questions than those that are evaluated"
            )
        check_evaluation(teacher, problems, config.evaluation)
        first = first or problems
    return teacher, first


def _problems(config: RunConfig, task: Task) -> list[Example]:
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


def _units(config: RunConfig) -> list[Unit]:
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
    plan: dict[str, Mapping[str, int]] = {}
    if config.adapt is not None:
        plan["teacher"] = {"step": config.adapt.pretrain.training.steps}
    for part in parts(config):
        for name, _ in teacher_rollouts(config).values():
            num = config.data.num_prompts // config.num_workers
            plan[rollout_stage(name, part)] = {"prompt": num}
    titles = _titles(units)

    def evaluations(unit: Unit, settings: Sequence[DecodingConfig]) -> Plan:
        names = stage_names(unit.identity, config.evaluation.settings)
        num = config.data.num_problems * len(config.tasks)
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
    teacher: LanguageModel,
    units: Sequence[Unit],
    settings: Sequence[DecodingConfig],
    *,
    progress: bool,
) -> Iterator[Unit]:
    """Train and evaluate units with the recipe's processes, and yield each when it is finished.

    Args:
        config: the recipe; its trajectories are recorded first, and its teacher is evaluated.
        teacher: the recipe's teacher.
        units: checkpoints to train, in this order.
        settings: decoding settings that are evaluated while other work goes on.
    """
    titles = _titles(units)
    if config.num_workers == 1:
        _, num_processes = launched()
        # Several ranks only train here: they should not wait while the first one evaluates.
        settings = settings if num_processes == 1 else ()
        record_trajectories(config, teacher, progress=progress)
        evaluate_unit(config, TEACHER, settings, progress=progress)
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
        ahead = iter(units)

        def train_next() -> None:
            for unit in islice(ahead, 1):
                job = workers.submit(train_unit, config, unit, titles[unit], progress=progress)
                jobs[job] = unit

        def evaluate_later(unit: Unit, own: Sequence[DecodingConfig]) -> None:
            # One job a setting, so that no worker is idle at the end while another has many left.
            for setting in own:
                job = workers.submit(evaluate_unit, config, unit, [setting], progress=progress)
                jobs[job] = unit

        for _ in range(config.num_workers):
            train_next()
        owed = [(TEACHER, [setting for setting in settings if setting not in full])]
        trained = {TEACHER}
        if not jobs:
            evaluate_later(*owed.pop())
        while jobs:
            for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                unit = jobs.pop(job)
                job.result()
                if unit not in trained:
                    trained.add(unit)
                    # Training takes longest, so it begins first.
                    train_next()
                    for evaluation in (*owed, (unit, settings)):
                        evaluate_later(*evaluation)
                    owed.clear()
                if unit not in jobs.values() and unit != TEACHER:
                    yield unit


def _record_part(config: RunConfig, part: Part | None, *, progress: bool) -> None:
    record_trajectories(config, from_pretrained(config.model), part=part, progress=progress)


def train_unit(config: RunConfig, unit: Unit, title: str, *, progress: bool) -> None:
    """Train a student unless its checkpoint exists; `title` is the name of the stage."""
    with stage(title):
        train_student(
            config,
            config.methods[unit.method],
            replace(config.training, seed=unit.seed),
            config.output / "checkpoints" / unit.path,
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
    checkpoint = config.output / "checkpoints" / unit.path
    latency = config.evaluation.measure_latency and (is_alone or config.num_workers == 1)
    for task in config.problem_sets() if settings else ():
        evaluate_settings(
            config.model if unit == TEACHER else str(checkpoint),
            Identity(ORIGINAL) if unit == TEACHER else identify(checkpoint, unit.method),
            task,
            _problems(config, task),
            replace(config.evaluation, measure_latency=latency),
            _directory(config, unit, task),
            settings=settings,
            full=_directory(config, TEACHER, task) / config.evaluation.settings[0].name,
            progress=progress,
        )


def _directory(config: RunConfig, unit: Unit, task: Task) -> Path:
    """The directory of a checkpoint's evaluations; one for each task where there are several."""
    directory = config.output / "evaluation" / unit.path
    return directory / task.name if len(config.tasks) > 1 else directory


_Evaluations = dict[tuple[Unit, str, DecodingConfig], Evaluation]


def _evaluations(config: RunConfig, units: Sequence[Unit]) -> _Evaluations:
    """All finished evaluations, sorted by method (in the recipe's order), task and setting."""
    order = list(config.methods)
    tasks = config.problem_sets()
    out: _Evaluations = {}
    for unit in (TEACHER, *sorted(units, key=lambda unit: order.index(unit.method))):
        for task in tasks:
            for setting in config.evaluation.settings:
                path = _directory(config, unit, task) / setting.name
                if is_finished(path):
                    out[unit, task.name, setting] = Evaluation.load(path)
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
                sample = found.samples[number]
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
