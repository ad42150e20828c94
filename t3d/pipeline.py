"""The whole route from one recipe: rollout, distill, evaluate, report; resumes where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from t3d.decoding.request import DecodingConfig
from t3d.evaluation.evaluate import Evaluation, Identity, evaluate
from t3d.evaluation.results import ResultRow, save_results
from t3d.models import LanguageModel, from_pretrained
from t3d.provenance import provenance, write_json
from t3d.report import Problem, view_of, write_report
from t3d.rollout import RolloutConfig, rollout
from t3d.store import TrajectoryStore
from t3d.tasks import Example, get_task
from t3d.tasks.base import Split
from t3d.training.config import TrainingConfig
from t3d.training.distill import MethodConfig, distill

ORIGINAL = "original"
"""The method name of the teacher itself."""


@dataclass(frozen=True)
class DataConfig:
    """Problems of the task.

    Args:
        num_prompts: training prompts that the teacher rolls out; their answers are not read.
        seed: of the training stream, for generated tasks.
        split: what evaluation reads.
        num_problems: evaluated problems.
    """

    num_prompts: int = 4000
    seed: int = 0
    split: Split = "test"
    num_problems: int = 500


def _settings() -> list[DecodingConfig]:
    static = [DecodingConfig(denoising_steps=steps, max_new_tokens=96) for steps in (4, 2, 1)]
    return [*static, DecodingConfig(remasking="low_confidence_dynamic", max_new_tokens=96)]


@dataclass(frozen=True)
class EvaluationConfig:
    """Which decoding settings are evaluated.

    Args:
        settings: the grid; the first is full-step and defines `agreement`.
        batch_size: problems decoded at the same time.
        seed: of candidate sampling.
        measure_latency: decode a few problems at batch 1 for each setting.
        num_shown: problems whose trajectories the report shows.
    """

    settings: list[DecodingConfig] = field(default_factory=_settings)
    batch_size: int = 250
    seed: int = 0
    measure_latency: bool = True
    num_shown: int = 3


@dataclass(frozen=True)
class RunConfig:
    """A recipe of the whole route.

    Args:
        model: the teacher: a checkpoint directory, a Hub name, or mini_teacher.
        task: the benchmark that gives prompts and problems.
        output: the run's directory.
        data: problems.
        rollout: how the teacher decodes the training prompts.
        methods: checkpoint name -> method; `original` is always evaluated beside them.
        training: optimisation, shared by all methods.
        evaluation: decoding settings to evaluate.
    """

    model: str = "mini_teacher"
    task: str = "mini_gsm"
    output: Path = Path("runs/demo")
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    methods: dict[str, MethodConfig] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def run(config: RunConfig, *, progress: bool = True) -> list[ResultRow]:
    """Walk the route; what an earlier, killed run has finished is kept.

    Raises:
        ValueError: for settings that do not fit, before anything is written, and for a
            directory that holds another recipe's run.
    """
    if ORIGINAL in config.methods:
        raise ValueError(f"methods: {ORIGINAL!r} is the teacher's own name; choose another")
    for method in config.methods.values():
        method.build()
    task = get_task(config.task)
    teacher = load(config.model)
    claim(config, teacher)
    store_path = config.output / "trajectories"
    prompts = task.examples("train", config.data.num_prompts, seed=config.data.seed)
    store = rollout(teacher, prompts, store_path, config.rollout, progress=progress)
    for name, method in config.methods.items():
        train_method(config, name, method, store, progress=progress)
    problems = task.examples(config.data.split, config.data.num_problems)
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
    shown = problems[: config.evaluation.num_shown]
    write_report(config.output, rows, _problem_views(teacher, shown, evaluations))
    return rows


def load(name: str) -> LanguageModel:
    return from_pretrained(name, device="cuda" if torch.cuda.is_available() else "cpu")


def claim(config: RunConfig, teacher: LanguageModel) -> None:
    """Record the recipe in its directory, or check that it is the same one."""
    path = config.output / "recipe.json"
    recipe = json.loads(json.dumps(asdict(config), default=str))
    recipe["weights_hash"] = teacher.weights_hash
    if not path.exists():
        write_json(path, recipe)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); choose another output") from None
    changed = sorted(key for key in recipe | before if recipe.get(key) != before.get(key))
    if changed:
        raise ValueError(
            f"{config.output}: holds a run of another recipe ({', '.join(changed)} differ); "
            "choose another --output or delete it"
        )


def train_method(
    config: RunConfig,
    name: str,
    method: MethodConfig,
    store: TrajectoryStore,
    *,
    progress: bool,
) -> None:
    """Train one student unless its checkpoint is there."""
    output = config.output / "checkpoints" / name
    if (output / "provenance.json").exists():
        return
    student = load(config.model)
    distill(student, store.read(), method, config.training, output, progress=progress)


def evaluate_checkpoint(
    config: RunConfig, name: str, problems: Sequence[Example], *, progress: bool
) -> list[Evaluation]:
    """All settings of one checkpoint; the finished ones are read back."""
    directory = config.output / "evaluation"
    full = directory / ORIGINAL / f"{_slug(config.evaluation.settings[0])}.json"
    identity, lm = Identity(name), None
    if name != ORIGINAL:
        record = config.output / "checkpoints" / name / "provenance.json"
        facts = json.loads(record.read_text(encoding="utf-8"))
        identity = Identity(name, facts["seed"], facts["optimizer_steps"], facts["tokens_seen"])
    evaluations = []
    for setting in config.evaluation.settings:
        path = directory / name / f"{_slug(setting)}.json"
        if not path.exists():
            checkpoint = config.output / "checkpoints" / name
            lm = lm or load(config.model if name == ORIGINAL else str(checkpoint))
            teacher = Evaluation.load(full).final_answers if full.exists() else None
            evaluation = evaluate(
                lm,
                get_task(config.task),
                problems,
                setting,
                identity,
                batch_size=config.evaluation.batch_size,
                seed=config.evaluation.seed,
                teacher_answers=teacher,
                measure_latency=config.evaluation.measure_latency,
                progress=progress,
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            evaluation.save(path)
        evaluations.append(Evaluation.load(path))
    return evaluations


def _slug(setting: DecodingConfig) -> str:
    name = f"block{setting.block_size}-steps{setting.denoising_steps}-{setting.remasking}"
    dynamic = setting.remasking == "low_confidence_dynamic"
    return name + (f"-{setting.confidence_threshold:g}" if dynamic else "")


def _problem_views(
    lm: LanguageModel, shown: Sequence[Example], evaluations: dict[str, list[Evaluation]]
) -> list[Problem]:
    """The first problems as every checkpoint decoded them, slowest setting first."""

    def text(token: int) -> str:
        return str(lm.tokenizer.decode([token]))

    problems: list[Problem] = []
    for number, example in enumerate(shown):
        prompt_length = len(lm.encode_prompt(example.question))
        views = []
        for name, group in evaluations.items():
            for evaluation in group:
                row, sample = evaluation.row, evaluation.samples[number]
                pace = f"{row.denoising_steps} steps a block of {row.block_size}"
                if row.confidence_threshold is not None:
                    pace = f"dynamic, threshold {row.confidence_threshold:g}"
                views.append(
                    view_of(
                        sample.completion,
                        text,
                        title=f"{name}, {pace}",
                        prompt_length=prompt_length,
                        block_size=row.block_size,
                        correct=sample.grade.correct,
                    )
                )
        problems.append((example.question, example.answer, views))
    return problems
