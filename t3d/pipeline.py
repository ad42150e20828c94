"""The whole route from one recipe: rollout, distill, evaluate, report; resumes where it stopped."""

from __future__ import annotations

import hashlib
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
from t3d.rollout import RolloutConfig, encode_prompts, rollout
from t3d.store import TrajectoryStore
from t3d.tasks import Example, Task, get_task
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


def _settings() -> tuple[DecodingConfig, ...]:
    static = (DecodingConfig(denoising_steps=steps, max_new_tokens=96) for steps in (4, 2, 1))
    return *static, DecodingConfig(remasking="low_confidence_dynamic", max_new_tokens=96)


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

    # A tuple: jsonargparse would fill the gaps of a list's items from the default's.
    settings: tuple[DecodingConfig, ...] = field(default_factory=_settings)
    batch_size: int = 250
    seed: int = 0
    measure_latency: bool = True
    num_shown: int = 3

    def __post_init__(self) -> None:
        if not self.settings:
            raise ValueError("evaluation: settings is empty; name at least one decoding setting")
        if self.batch_size < 1:
            raise ValueError(f"evaluation: batch_size must be at least 1, got {self.batch_size}")
        if self.num_shown < 0:
            raise ValueError(f"evaluation: num_shown must not be negative, got {self.num_shown}")


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
    return walk(config, progress=progress)[0]


def walk(config: RunConfig, *, progress: bool = True) -> tuple[list[ResultRow], list[Problem]]:
    """`run`, with the decoded problems that the report shows."""
    task = get_task(config.task)
    for name, method in config.methods.items():
        if name == ORIGINAL:
            raise ValueError(f"methods: {ORIGINAL!r} is the teacher's own name; choose another")
        if Path(name).name != name:
            raise ValueError(f"methods: {name!r} is to name a directory; choose another name")
        check_training(method, config.training, config.data.num_prompts, config.output)
    teacher = load(config.model)
    prompts = task.examples("train", config.data.num_prompts, seed=config.data.seed)
    problems = task.examples(config.data.split, config.data.num_problems)
    encode_prompts(teacher, prompts, config.rollout.decoding)
    check_evaluation(teacher, problems, config.evaluation)
    claim(config.output, asdict(config), teacher.weights_hash)
    store_path = config.output / "trajectories"
    store = rollout(teacher, prompts, store_path, config.rollout, progress=progress)
    for name, method in config.methods.items():
        train_method(config, name, method, store, progress=progress)
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


def load(name: str) -> LanguageModel:
    return from_pretrained(name, device="cuda" if torch.cuda.is_available() else "cpu")


def check_training(
    method: MethodConfig | None, config: TrainingConfig, num_sequences: int, output: Path
) -> None:
    """Raise ValueError for what would fail only when training starts; None is for pretraining."""
    if method is not None:
        method.build()
    config.arguments(output, progress=False)
    if num_sequences < config.batch_size:
        raise ValueError(
            f"{num_sequences} training sequences are fewer than batch_size={config.batch_size}; "
            "take more prompts or a smaller batch"
        )


def check_evaluation(
    lm: LanguageModel, problems: Sequence[Example], config: EvaluationConfig
) -> None:
    """Raise ValueError for what would fail only when evaluation starts."""
    if not problems:
        raise ValueError("there are no problems to evaluate; ask for at least one")
    labels = set()
    for setting in config.settings:
        if _label(setting) in labels:
            raise ValueError(f"evaluation: two settings are {_label(setting)}; keep one of them")
        labels.add(_label(setting))
        encode_prompts(lm, problems, setting)


def claim(directory: Path, recipe: dict[str, Any], weights_hash: str | None) -> None:
    """Record in a new directory what will be made there, or check that it is the same.

    Raises:
        ValueError: if something else was made there, or the directory cannot be.
    """
    path = directory / "recipe.json"
    recipe = json.loads(json.dumps(recipe, default=str)) | {"weights_hash": weights_hash}
    recipe.pop("output", None)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{directory}: no directory can be made there ({error.strerror}); choose another output"
        ) from None
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
            f"{directory}: holds what another recipe made ({', '.join(changed)} differ); "
            "choose another output or delete it"
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


def identify(checkpoint: Path) -> Identity:
    """A student goes by its directory's name; a model that was not distilled is the original."""
    record = checkpoint / "provenance.json"
    facts = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if "optimizer_steps" not in facts:
        return Identity(ORIGINAL)
    return Identity(checkpoint.name, facts["seed"], facts["optimizer_steps"], facts["tokens_seen"])


def evaluate_checkpoint(
    config: RunConfig, name: str, problems: Sequence[Example], *, progress: bool
) -> list[Evaluation]:
    """All settings of one checkpoint of the run."""
    directory = config.output / "evaluation"
    checkpoint = config.output / "checkpoints" / name
    return evaluate_settings(
        config.model if name == ORIGINAL else str(checkpoint),
        Identity(ORIGINAL) if name == ORIGINAL else identify(checkpoint),
        get_task(config.task),
        problems,
        config.evaluation,
        directory / name,
        full=directory / ORIGINAL / _file_name(config.evaluation.settings[0]),
        progress=progress,
    )


def evaluate_settings(
    model: str | LanguageModel,
    identity: Identity,
    task: Task,
    problems: Sequence[Example],
    config: EvaluationConfig,
    directory: Path,
    *,
    full: Path | None = None,
    progress: bool,
) -> list[Evaluation]:
    """Evaluate each setting into a file of `directory`; the finished ones are read back.

    Args:
        model: a model, or the name of one to load when a setting is missing.
        full: the file of the full-step teacher, which defines `agreement` once it is there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    evaluations = []
    for setting in config.settings:
        path = directory / _file_name(setting)
        if not path.exists():
            model = load(model) if isinstance(model, str) else model
            teacher = Evaluation.load(full).final_answers if full and full.exists() else None
            evaluation = evaluate(
                model,
                task,
                problems,
                setting,
                identity,
                batch_size=config.batch_size,
                seed=config.seed,
                teacher_answers=teacher,
                measure_latency=config.measure_latency,
                progress=progress,
            )
            evaluation.save(path)
        evaluations.append(Evaluation.load(path))
    return evaluations


def _label(setting: DecodingConfig) -> str:
    """What the rows and tables of results tell settings apart by."""
    name = f"block{setting.block_size}-steps{setting.denoising_steps}-{setting.remasking}"
    if setting.remasking == "low_confidence_dynamic":
        name += f"-{setting.confidence_threshold:g}"
    return f"{name}-temperature{setting.temperature:g}"


def _file_name(setting: DecodingConfig) -> str:
    digest = hashlib.sha256(json.dumps(asdict(setting)).encode()).hexdigest()
    return f"{_label(setting)}-{digest[:8]}.json"


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
                plural = "s" if row.denoising_steps > 1 else ""
                pace = f"{row.denoising_steps} step{plural} a block of {row.block_size}"
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
