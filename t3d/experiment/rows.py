"""What a student is trained on in a round: which trajectories, of which prompts, decoded how."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from accelerate import PartialState

from t3d.core.progress import note
from t3d.core.store import TrajectoryStore
from t3d.core.trajectory import Trajectory, training_rows
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.decoding.rollout import rollout
from t3d.experiment.recipe import RunConfig
from t3d.experiment.reinforcement import rewarded_rows, taught
from t3d.models import LanguageModel, from_pretrained
from t3d.tasks import Example, Task
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.methods import build_method
from t3d.training.pretrain import labelled_rows


def train_prompts(config: RunConfig) -> list[Example]:
    """The training prompts of a recipe; only labelled methods read their answers."""
    return config.prompt_set().examples("train", config.data.num_prompts, seed=config.data.seed)


def own_decoding(
    base: DecodingConfig, method: MethodConfig, *, student: bool = False
) -> DecodingConfig:
    """The decoding setting of a method's trajectories: `base` with the method's changes.

    Args:
        student: whether it is for the student's own trajectories, see `own_rounds`.

    Raises:
        ValueError: for an unknown setting or value.
    """
    built = build_method(method)
    changes = built.decoding | (built.student_decoding if student else {})
    where = f"method {method.method}: {'student_decoding' if student else 'decoding'}"
    try:
        decoding = replace(base, **changes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    if student and built.advantage and not decoding.is_untempered:
        raise ValueError(
            f"{where}: a policy gradient needs the probabilities that tokens were drawn with, and "
            "the recorded ones are untempered; set temperature and top_p to 1 and top_k to 0"
        )
    return decoding


def own_rollout(config: RunConfig, method: MethodConfig, *, student: bool = False) -> RolloutConfig:
    """The recipe's rollout with `own_decoding`."""
    decoding = own_decoding(config.rollout.decoding, method, student=student)
    return replace(config.rollout, decoding=decoding)


def store_path(config: RunConfig, method: MethodConfig) -> Path:
    """The store of the teacher's trajectories for a method; most methods share one."""
    decoding = own_rollout(config, method).decoding
    if decoding == config.rollout.decoding:
        return config.output / "trajectories"
    return config.output / f"trajectories-{decoding.digest}"


def own_training(method: MethodConfig, training: TrainingConfig) -> TrainingConfig:
    """The shared settings of training with the method's number of steps and learning rate."""
    steps = method.steps or training.steps
    rate = training.learning_rate if method.learning_rate is None else method.learning_rate
    return replace(training, steps=steps, learning_rate=rate)


def own_rounds(method: MethodConfig) -> int:
    """Number of a method's rounds, its last ones, whose trajectories its student decodes."""
    built = build_method(method)
    by_student = built.advantage is not None or (method.start is not None and built.rounds > 1)
    return built.rounds if by_student else built.rounds - 1


def recorded_rows(
    config: RunConfig,
    method: MethodConfig,
    training: TrainingConfig,
    model: str | Path,
    done: int,
    path: Path,
    *,
    progress: bool,
) -> tuple[list[dict[str, Any]], TrainingConfig, dict[str, Any]]:
    """The rows that a method trains on in a round, its settings and notes for its provenance.

    Args:
        model: the student as it is before the round, which decodes, in memory no longer than that.
        done: number of optimizer steps of the rounds before; 0 in the first one.
        path: store of the student's own trajectories.
    """
    built = build_method(method)
    if built.data == "labelled":
        lm = from_pretrained(model, device="meta")
        rows = labelled_rows(lm, _prompts(config, method), max(training.block_sizes))
        return rows, training, {"tokens_decoded": 0}
    if done == 0 and own_rounds(method) < built.rounds:
        own = TrajectoryStore.open(store_path(config, method)).read()[: method.num_sequences]
        return training_rows(own), training, {"tokens_decoded": num_tokens(own)}
    prompts = _rotated(_prompts(config, method), done, training)
    settings = replace(own_rollout(config, method, student=True), seed=training.seed)
    lm = from_pretrained(model, dtype=config.dtype)
    own = rollout(lm, prompts, path, settings, progress=progress).read()
    notes = {"tokens_decoded": num_tokens(own)}
    if built.verify:
        first = TrajectoryStore.open(store_path(config, method)).read()
        if done == 0:
            # No round before has counted them; those of its start may be other ones, or none.
            notes["tokens_decoded"] += num_tokens(first[: method.num_sequences])
        own = verified(config.prompt_set(), prompts, lm, own, first)
    return training_rows(own), training, notes


def reinforced_rows(
    config: RunConfig,
    method: MethodConfig,
    training: TrainingConfig,
    model: str | Path,
    done: int,
    path: Path,
    *,
    progress: bool,
) -> tuple[list[dict[str, Any]], TrainingConfig, dict[str, Any]]:
    """`recorded_rows` of a round of reinforcement: each response that teaches something once.

    The last batch is filled up with the first rows. No row is returned where none teaches.
    """
    advantage = build_method(method).advantage
    assert advantage is not None
    settings = replace(own_rollout(config, method, student=True), seed=training.seed)
    task = config.prompt_set(advantage.group_size)
    num = min(config.data.num_prompts, method.num_sequences or config.data.num_prompts)
    prompts = task.examples("train", num, seed=config.data.seed)
    prompts = _rotated(prompts, done, training)
    lm = from_pretrained(model, dtype=config.dtype)
    times = [time.monotonic()]
    own = rollout(lm, prompts, path, settings, progress=progress).read()
    times.append(time.monotonic())
    tokens = num_tokens(own)
    if advantage.answers == "teacher":
        # The prompts of the teacher's trajectories are numbered where it gave several responses.
        end = "" if config.data.num_responses == 1 else "#0"
        known = {t.prompt_id: t for t in TrajectoryStore.open(store_path(config, method)).read()}
        groups = prompts[:: advantage.group_size]
        teacher = [known[prompt.id.rpartition("#")[0] + end] for prompt in groups]
        tokens += num_tokens(teacher)
        prompts = taught(task, prompts, lm, teacher)
    rows, facts = rewarded_rows(task, prompts, lm, own, advantage)
    times.append(time.monotonic())
    seconds = [round(after - before, 2) for before, after in pairwise(times)]
    facts |= dict(zip(("decoding_seconds", "grading_seconds"), seconds, strict=True))
    steps = -(-len(rows) // training.batch_size)
    filled = zip(range(steps * training.batch_size), cycle(rows))
    training = replace(
        training,
        steps=max(1, steps),
        warmup_steps=0,
        schedule="constant",
        logging_steps=max(1, min(steps, training.logging_steps)),
        block_sizes=[settings.decoding.block_size],
    )
    rows = [row | {"index": index} for index, row in filled]
    return rows, training, {"tokens_decoded": tokens, "reward": facts}


def num_tokens(trajectories: Sequence[Trajectory]) -> int:
    """Number of response tokens, up to and including the stop tokens."""
    return sum(trajectory.num_response_tokens for trajectory in trajectories)


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


def _rotated(prompts: list[Example], done: int, training: TrainingConfig) -> list[Example]:
    """The prompts that a round of training takes after `done` steps, at most all; different ones in
    every round, until all have been used."""
    start = done * training.batch_size % len(prompts)
    return (prompts[start:] + prompts[:start])[: training.steps * training.batch_size]
