"""The whole route from one recipe: rollout, distill, evaluate, report; resumes where it stopped."""

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
from t3d.decoding.config import DecodingConfig
from t3d.decoding.rollout import encode_prompts
from t3d.evaluation.evaluate import Evaluation, Identity
from t3d.evaluation.results import ORIGINAL, ResultRow, save_results
from t3d.experiment.adapt import with_teacher
from t3d.experiment.grid import (
    check_evaluation,
    evaluate_settings,
    evaluation_stage,
    file_name,
    identify,
    load,
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
from t3d.models import LanguageModel
from t3d.report.page import write_report
from t3d.report.trajectories import Problem, view_of
from t3d.tasks import Example


def run(config: RunConfig, *, progress: bool = True) -> list[ResultRow]:
    """Walk the route; what an earlier, killed run has finished is kept.

    Raises:
        ValueError: for settings that do not fit, before anything is written, and for a
            directory that holds another recipe's run.
    """
    return walk(config, progress=progress)[0]


def walk(config: RunConfig, *, progress: bool = True) -> tuple[list[ResultRow], list[Problem]]:
    """`run`, with the decoded problems that the report shows.

    Processes that `torchrun` starts share rollouts and training; the first one evaluates, and the
    others return nothing.
    """
    units = [Unit(name, config.training.seed, Path(name)) for name in config.methods]
    # What is timed has the machine to itself.
    untimed = () if config.evaluation.measure_latency else config.evaluation.settings
    plan = stages(config, units, untimed)
    with display(plan, show=progress, num_workers=config.num_workers):
        config = with_teacher(config, progress=progress)
        teacher, problems = prepare(config)
        claim(config.output, asdict(config), teacher.weights_hash)
        for _ in finished(config, teacher, units, untimed, progress=progress):
            pass
        rank, _ = launched()
        if rank > 0:
            return [], []
        evaluations = {
            unit.method: evaluate_unit(
                config, unit, config.evaluation.settings, timed=True, progress=progress
            )
            for unit in (TEACHER, *units)
        }
    rows = [e.row for group in evaluations.values() for e in group]
    record = provenance(
        config=asdict(config),
        seed=config.training.seed,
        model=config.model,
        weights_hash=teacher.weights_hash,
    )
    save_results(config.output / "results.json", rows, record)
    shown = _problem_views(teacher, problems[: config.evaluation.num_shown], evaluations)
    write_report(config.output, rows, shown)
    return rows, shown


def prepare(config: RunConfig) -> tuple[LanguageModel, list[Example]]:
    """The teacher and the problems of a recipe in which everything fits together.

    Raises:
        ValueError: for settings that do not fit; nothing has been written then.
    """
    if config.num_workers > 1 and launched()[1] > 1:
        raise ValueError("num_workers: the launcher's processes share the work; set it to 1")
    check_recipe(config)
    teacher = load(config.model)
    prompts = train_prompts(config)
    decodings = {
        own_rollout(config, method, student=student).decoding
        for method in config.methods.values()
        for student in (False, True)
    }
    for decoding in decodings | {config.rollout.decoding}:
        encode_prompts(teacher, prompts, decoding)
    problems = config.problem_set().examples(config.data.split, config.data.num_problems)
    if config.data.prompts is not None:
        asked = {prompt.question for prompt in prompts}
        shared = next((problem.id for problem in problems if problem.question in asked), None)
        if shared is not None:
            raise ValueError(
                f"{config.data.prompts}: asks what problem {shared} of {config.task} asks; "
                "train on other questions than those that are evaluated"
            )
    check_evaluation(teacher, problems, config.evaluation)
    return teacher, problems


@dataclass(frozen=True)
class Unit:
    """A checkpoint of a recipe: one method with one seed."""

    method: str
    seed: int
    path: Path
    """Below checkpoints/ and evaluation/."""

    def evaluations(self, settings: Sequence[DecodingConfig], num: int) -> Plan:
        """Its evaluations on so many problems, as stages."""
        identity = Identity(self.method, self.seed)
        return {evaluation_stage(identity, setting): {"prompt": num} for setting in settings}


TEACHER = Unit(ORIGINAL, 0, Path(ORIGINAL))


def stages(
    config: RunConfig, units: Sequence[Unit], untimed: Sequence[DecodingConfig]
) -> dict[str, Mapping[str, int]]:
    """What the route has before it, in the order of `finished`."""
    plan: dict[str, Mapping[str, int]] = {}
    if config.adapt is not None:
        plan["teacher"] = {"step": config.adapt.pretrain.training.steps}
    for part in parts(config):
        for name, _ in teacher_rollouts(config).values():
            num = config.data.num_prompts // config.num_workers
            plan[rollout_stage(name, part)] = {"prompt": num}
    num, titles = config.data.num_problems, _titles(units)
    for unit in (TEACHER, *units):
        if unit != TEACHER:
            plan[titles[unit]] = student_work(config, config.methods[unit.method])
        plan |= unit.evaluations(untimed, num)
    timed = [setting for setting in config.evaluation.settings if setting not in untimed]
    for unit in (TEACHER, *units):
        plan |= unit.evaluations(timed, num)
    return plan


def _titles(units: Sequence[Unit]) -> dict[Unit, str]:
    """What the training of each is called."""
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
    """Units as each is trained and evaluated, by as many processes as the recipe says.

    Args:
        config: the recipe, whose trajectories are recorded before, and whose teacher is evaluated.
        teacher: of the recipe.
        units: to be trained, in this order.
        settings: those of the recipe that are evaluated beside other work.
    """
    titles = _titles(units)
    if config.num_workers == 1:
        _, num_processes = launched()
        # Ranks do not wait for the first one to evaluate.
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
        # What all other rows are compared with.
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
            # Settings one by one: nobody waits at the end while another has much to do.
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
                    # What takes longest begins first.
                    train_next()
                    for evaluation in (*owed, (unit, settings)):
                        evaluate_later(*evaluation)
                    owed.clear()
                if unit not in jobs.values() and unit != TEACHER:
                    yield unit


def _record_part(config: RunConfig, part: Part | None, *, progress: bool) -> None:
    record_trajectories(config, load(config.model), part=part, progress=progress)


def train_unit(config: RunConfig, unit: Unit, title: str, *, progress: bool) -> None:
    """Train a student unless it is there; `title` is what the stage is called."""
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
    timed: bool = False,
    progress: bool,
) -> list[Evaluation]:
    """Evaluate a checkpoint under some of the recipe's settings; the finished ones are read.

    Args:
        timed: the machine has nothing else to do.
    """
    if not settings:
        return []
    directory = config.output / "evaluation"
    checkpoint = config.output / "checkpoints" / unit.path
    task = config.problem_set()
    latency = config.evaluation.measure_latency and timed
    return evaluate_settings(
        config.model if unit == TEACHER else str(checkpoint),
        Identity(ORIGINAL) if unit == TEACHER else identify(checkpoint, unit.method),
        task,
        task.examples(config.data.split, config.data.num_problems),
        replace(config.evaluation, settings=tuple(settings), measure_latency=latency),
        directory / unit.path,
        full=directory / ORIGINAL / file_name(config.evaluation.settings[0]),
        progress=progress,
    )


def _problem_views(
    lm: LanguageModel, shown: Sequence[Example], evaluations: dict[str, list[Evaluation]]
) -> list[Problem]:
    """The first problems as every checkpoint decoded them, slowest setting first."""
    problems: list[Problem] = []
    for number, example in enumerate(shown):
        views = []
        for name, group in evaluations.items():
            for evaluation in group:
                row, sample = evaluation.row, evaluation.samples[number]
                plural = "s" if row.denoising_steps > 1 else ""
                pace = f"{row.denoising_steps} step{plural} a block of {row.block_size}"
                if row.confidence_threshold is not None:
                    pace = f"dynamic, threshold {row.confidence_threshold:g}"
                views.append(
                    view_of(
                        sample.completion,
                        lambda token: lm.text([token]),
                        title=f"{name}, {pace}",
                        prompt_length=len(sample.prompt_ids),
                        block_size=row.block_size,
                        grade=sample.grade,
                    )
                )
        problems.append((example.question, example.answer, views))
    return problems
