"""The whole route from one recipe: rollout, distill, evaluate, report; resumes where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from t3d.adapt import with_teacher
from t3d.evaluation.evaluate import Evaluation, Identity
from t3d.evaluation.results import ORIGINAL, ResultRow, save_results
from t3d.grid import check_evaluation, evaluate_settings, file_name, identify, load
from t3d.models import LanguageModel
from t3d.progress import display, stage
from t3d.provenance import claim, provenance
from t3d.recipe import RunConfig
from t3d.report.page import write_report
from t3d.report.trajectories import Problem, view_of
from t3d.rollout import encode_prompts
from t3d.students import (
    check_training,
    own_rollout,
    record_trajectories,
    student_work,
    teacher_rollouts,
    train_prompts,
    train_student,
)
from t3d.tasks import Example
from t3d.workers import launched


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
    with display(stages(config), show=progress):
        return _walk(config, progress=progress)


def _walk(config: RunConfig, *, progress: bool) -> tuple[list[ResultRow], list[Problem]]:
    config = with_teacher(config, progress=progress)
    teacher, problems = prepare(config)
    claim(config.output, asdict(config), teacher.weights_hash)
    record_trajectories(config, teacher, progress=progress)
    for name, method in config.methods.items():
        output = config.output / "checkpoints" / name
        with stage(_student(config, name)):
            train_student(config, method, config.training, output, progress=progress)
    rank, _ = launched()
    if rank > 0:
        return [], []
    evaluations = {
        name: evaluate_checkpoint(config, name, problems, progress=progress)
        for name in (ORIGINAL, *config.methods)
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


def stages(config: RunConfig) -> dict[str, dict[str, int]]:
    """What the route has before it, for `t3d.progress`."""
    problems = len(config.evaluation.settings) * config.data.num_problems
    return (
        preparation(config)
        | {_student(config, name): student_work(config, m) for name, m in config.methods.items()}
        | {_evaluation(name): {"prompt": problems} for name in (ORIGINAL, *config.methods)}
    )


def preparation(config: RunConfig) -> dict[str, dict[str, int]]:
    """The stages before the first student."""
    adapt = config.adapt
    teacher = {} if adapt is None else {"teacher": {"step": adapt.pretrain.training.steps}}
    return teacher | {
        name: {"prompt": config.data.num_prompts} for name in teacher_rollouts(config)
    }


def _student(config: RunConfig, name: str) -> str:
    number = list(config.methods).index(name) + 1
    return f"student {number} of {len(config.methods)}: {name}"


def _evaluation(name: str) -> str:
    return f"evaluation of {name}"


def prepare(config: RunConfig) -> tuple[LanguageModel, list[Example]]:
    """The teacher and the problems of a recipe in which everything fits together.

    Raises:
        ValueError: for settings that do not fit; nothing has been written then.
    """
    for name, method in config.methods.items():
        if name == ORIGINAL:
            raise ValueError(f"methods: {ORIGINAL!r} is the teacher's own name; choose another")
        if Path(name).name != name:
            raise ValueError(f"methods: {name!r} is to name a directory; choose another name")
        check_training(method, config.training, config.data.num_prompts, config.output)
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
    check_evaluation(teacher, problems, config.evaluation)
    return teacher, problems


def evaluate_checkpoint(
    config: RunConfig, name: str, problems: Sequence[Example], *, progress: bool
) -> list[Evaluation]:
    """All settings of one checkpoint of the run."""
    directory = config.output / "evaluation"
    checkpoint = config.output / "checkpoints" / name
    with stage(_evaluation(name)):
        return evaluate_settings(
            config.model if name == ORIGINAL else str(checkpoint),
            Identity(ORIGINAL) if name == ORIGINAL else identify(checkpoint),
            config.problem_set(),
            problems,
            config.evaluation,
            directory / name,
            full=directory / ORIGINAL / file_name(config.evaluation.settings[0]),
            progress=progress,
        )


def _problem_views(
    lm: LanguageModel, shown: Sequence[Example], evaluations: dict[str, list[Evaluation]]
) -> list[Problem]:
    """The first problems as every checkpoint decoded them, slowest setting first."""

    def text(token: int) -> str:
        return str(lm.tokenizer.decode([token]))

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
                        text,
                        title=f"{name}, {pace}",
                        prompt_length=len(sample.prompt_ids),
                        block_size=row.block_size,
                        correct=sample.grade.correct,
                    )
                )
        problems.append((example.question, example.answer, views))
    return problems
