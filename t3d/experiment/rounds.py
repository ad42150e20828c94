"""Training of one student of a recipe: its data, and its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from accelerate import PartialState

from t3d.core.files import plain, read_object, write_json
from t3d.core.progress import note, stage
from t3d.core.rng import derive_key
from t3d.core.store import TrajectoryStore
from t3d.core.trajectory import Trajectory, training_rows
from t3d.core.workers import alone, launched
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.decoding.rollout import rollout
from t3d.evaluation.results import ORIGINAL
from t3d.experiment.recipe import RunConfig
from t3d.experiment.watch import Watch
from t3d.models import LanguageModel, from_pretrained
from t3d.tasks import Example, Task, mixture
from t3d.training.arguments import training_arguments, uses_deepspeed
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.distill import distill
from t3d.training.methods import build_method
from t3d.training.pretrain import labelled_rows


def train_prompts(config: RunConfig) -> list[Example]:
    """The training prompts of a recipe; only labelled methods read their answers."""
    return config.prompt_set().examples("train", config.data.num_prompts, seed=config.data.seed)


def self_distilled(config: RunConfig) -> list[str]:
    """The methods of a recipe that learn from what the teacher decodes, without labels."""
    methods = config.methods.items()
    return [name for name, own in methods if build_method(own).data == "trajectories"]


def own_decoding(
    base: DecodingConfig, method: MethodConfig, *, student: bool = False
) -> DecodingConfig:
    """The decoding setting of a method's trajectories: `base` with the method's changes.

    Args:
        student: whether it is for the student's own trajectories, in the rounds after the first.

    Raises:
        ValueError: for an unknown setting or value.
    """
    built = build_method(method)
    changes = built.decoding | (built.student_decoding if student else {})
    try:
        return replace(base, **changes)
    except (TypeError, ValueError) as error:
        where = "student_decoding" if student else "decoding"
        raise ValueError(f"method {method.method}: {where}: {error}") from None


def own_rollout(config: RunConfig, method: MethodConfig, *, student: bool = False) -> RolloutConfig:
    """The recipe's rollout with `own_decoding`."""
    decoding = own_decoding(config.rollout.decoding, method, student=student)
    return replace(config.rollout, decoding=decoding)


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


def trains_apart(config: RunConfig) -> bool:
    """Whether each of a launcher's processes trains students of its own.

    They train every student together where weights are split over them, or where there are fewer
    students than processes.
    """
    _, num_processes = launched()
    is_whole = config.training.sharding == "none" and not uses_deepspeed(config.training)
    num_students = len(config.methods) * max(1, len(config.seeds))
    return is_whole and 1 < num_processes <= num_students


def store_path(config: RunConfig, method: MethodConfig) -> Path:
    """The store of the teacher's trajectories for a method; most methods share one."""
    decoding = own_rollout(config, method).decoding
    if decoding == config.rollout.decoding:
        return config.output / "trajectories"
    return config.output / f"trajectories-{decoding.digest}"


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
    rounds = build_method(method).rounds
    sequences = config.data.num_sequences
    sequences = min(method.num_sequences or sequences, sequences)
    num = min(sequences, config.training.steps // rounds * config.training.batch_size)
    return {"step": config.training.steps, "prompt": (rounds - 1) * num}


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
    on it trains on trajectories that the student of the round before made, of as many prompts as
    it will read, and with `Method.verify` on the teacher's where the two end with other answers.

    Processes that `torchrun` starts call it alike: they share rollouts and training, and of them
    the first one writes.
    """
    if is_trained(output):
        return
    built = build_method(method)
    rounds = config.output / "rounds" / output.relative_to(config.output / "checkpoints")
    several = built.rounds > 1
    directories = [rounds / f"round{n}" for n in range(built.rounds)] if several else [output]
    needs_teacher = built.objective.needs_teacher
    records: list[dict[str, Any]] = []
    start: str | Path = config.model
    for number, directory in enumerate(directories):
        steps = training.steps // built.rounds + (number < training.steps % built.rounds)
        warmup = round(training.warmup_steps / built.rounds)
        seed = derive_key(training.seed, "round", number) % 2**31 if several else training.seed
        with stage(f"round {number + 1} of {built.rounds}") if several else nullcontext():
            if not is_trained(directory):
                if number == 0:
                    rows = _rows(config, method, from_pretrained(start, device="meta"))
                else:
                    num = steps * training.batch_size
                    prompts = _rotated(_prompts(config, method), number, num)
                    settings = replace(own_rollout(config, method, student=True), seed=seed)
                    path = rounds / f"trajectories{number}"
                    student = from_pretrained(start, dtype=config.dtype)
                    own = rollout(student, prompts, path, settings, progress=progress).read()
                    if built.verify:
                        first = TrajectoryStore.open(store_path(config, method)).read()
                        own = verified(config.prompt_set(), prompts, student, own, first)
                    rows = training_rows(own)
                # Of what decoded only the text is needed from here on; training takes float32.
                student = from_pretrained(start)
                rate = method.learning_rate or training.learning_rate
                distill(
                    student,
                    rows,
                    replace(method, learning_rate=rate * built.round_rate(number)),
                    replace(training, steps=steps, warmup_steps=warmup, seed=seed),
                    directory,
                    # In the first round the teacher is a copy of the student, by default.
                    teacher=from_pretrained(config.model, dtype=training.frozen_dtype)
                    if number and needs_teacher
                    else None,
                    callbacks=_watch(config, student),
                    progress=progress,
                )
        records.append(read_object(directory / "provenance.json"))
        start = directory
    # The arguments say which process writes, even where all rounds were trained before.
    if training_arguments(training, output).should_save:
        _finish(method, training, records, directories[-1], output)
    PartialState().wait_for_everyone()


def _finish(
    method: MethodConfig,
    training: TrainingConfig,
    records: list[dict[str, Any]],
    last: Path,
    output: Path,
) -> None:
    """Make the last round's directory the checkpoint, and its provenance that of all rounds.

    Steps of the log count on from round to round.
    """
    record = records[-1]
    if "rounds" not in record:
        before = accumulate((r["optimizer_steps"] for r in records), initial=0)
        record["log"] = [
            row | {"step": row["step"] + done}
            for done, own in zip(before, records, strict=False)
            for row in own["log"]
        ]
        for key in ("optimizer_steps", "tokens_seen"):
            record[key] = sum(r[key] for r in records)
        record |= {"rounds": len(records), "seed": training.seed, "model": records[0]["model"]}
        record["config"] = plain({"method": asdict(method), "training": asdict(training)})
        write_json(last / "provenance.json", record)
    output.parent.mkdir(parents=True, exist_ok=True)
    if last != output:
        last.rename(output)


def _watch(config: RunConfig, student: LanguageModel) -> list[Watch]:
    """The callback that evaluates a student while it trains, if the recipe asks for it."""
    if config.watch is None:
        return []
    task = mixture(config.problem_sets())
    problems = task.examples("dev", config.watch.num_problems)
    return [Watch(student, task, problems, config.watch)]


def _rotated(prompts: list[Example], number: int, num: int) -> list[Example]:
    """At most `num` prompts; different ones in every round, until all have been used."""
    start = number * num % len(prompts)
    return (prompts[start:] + prompts[:start])[:num]


def _rows(config: RunConfig, method: MethodConfig, lm: LanguageModel) -> list[dict[str, Any]]:
    """The rows that a method trains on."""
    built = build_method(method)
    if built.data == "labelled":
        return labelled_rows(lm, _prompts(config, method), max(config.training.block_sizes))
    store = TrajectoryStore.open(store_path(config, method))
    return training_rows(store.read()[: method.num_sequences])


def verified(
    task: Task,
    examples: Sequence[Example],
    lm: LanguageModel,
    own: Sequence[Trajectory],
    teacher: Sequence[Trajectory],
) -> list[Trajectory]:
    """A student's trajectories; the teacher's where the two end with different answers.

    Dropping the student's wrong trajectories instead would drop mostly long problems, and the
    student would forget those. The number of replaced ones is printed on stderr.

    Args:
        examples: the problems of `own`, in the same order.
        teacher: the teacher's trajectories of at least these problems, in any order.
    """
    known = {trajectory.prompt_id: trajectory for trajectory in teacher}
    first = [known[trajectory.prompt_id] for trajectory in own]

    def answers(trajectories: Sequence[Trajectory]) -> list[str | None]:
        texts = [lm.decode(t.response_ids[: t.num_response_tokens]) for t in trajectories]
        return [grade.final_answer for grade in task.grade(examples, texts)]

    found, taught = answers(own), answers(first)
    agree = [x is not None and x == y for x, y in zip(found, taught, strict=True)]
    if PartialState().is_main_process:
        note(
            f"verification: the teacher's response stands in for {agree.count(False)} of "
            f"{len(agree)}; without a final answer are {found.count(None)} of the student's "
            f"responses and {taught.count(None)} of the teacher's{_where(task, taught)}"
        )
    return [a if same else b for a, b, same in zip(own, first, agree, strict=True)]


def _where(task: Task, answers: Sequence[str | None]) -> str:
    if 2 * answers.count(None) <= len(answers):
        return ""
    return f": too few to verify by; {task.name} reads an answer in \\boxed{{}}"


def _prompts(config: RunConfig, method: MethodConfig) -> list[Example]:
    return train_prompts(config)[: method.num_sequences]


def check_training(
    method: MethodConfig | None, config: TrainingConfig, num_sequences: int, output: Path
) -> None:
    """Raise ValueError for errors that training would meet; a method of None is pretraining."""
    if method is not None:
        rounds = build_method(method).rounds
        num_sequences = min(num_sequences, method.num_sequences or num_sequences)
        if config.steps < rounds:
            raise ValueError(
                f"method {method.method!r}: {rounds} rounds need as many optimizer steps, "
                f"got steps={config.steps}"
            )
    training_arguments(config, output)
    config.check_enough(num_sequences)
