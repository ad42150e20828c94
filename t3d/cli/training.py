"""Commands that make models and trajectories: run, compare, pretrain, rollout, train."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from t3d.cli.common import plan_table, print_paths, show
from t3d.core.dtypes import Dtype
from t3d.core.files import RECIPE, check_output, claim
from t3d.core.ranges import check_number
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.experiment.recipe import CompareConfig, RunConfig
from t3d.tasks import ProtocolName, get_task
from t3d.tasks.mixture import repeated
from t3d.tasks.own import OwnQuestions
from t3d.training.config import MethodConfig, PretrainConfig, TrainingConfig


def run_command(
    *,
    dry_run: bool = False,
    rates: Path | None = None,
    smoke: bool = False,
    progress: bool = True,
    **recipe: Any,
) -> None:
    """Walk the whole route of a recipe: rollout, distill, evaluate, report.

    A killed run continues when the same command is given again.

    Examples:
      t3d run demo --training.steps 100 --output runs/short
      t3d run sdar_4b_math --dry_run

    Args:
        dry_run: only say what would be done, and what it would take.
        rates: folder of measured decode.json and train.json, from which --dry_run tells times.
        smoke: every stage on a handful of examples, into OUTPUT-smoke, to see that all works.
        progress: show progress bars.
    """
    _walk(RunConfig(**recipe), dry_run, rates, smoke, progress)


def compare_command(
    *,
    dry_run: bool = False,
    rates: Path | None = None,
    smoke: bool = False,
    progress: bool = True,
    **recipe: Any,
) -> None:
    """Train every method of a recipe with every seed, and compare them.

    A killed comparison continues when the same command is given again; methods and seeds may
    be added to a finished one.

    Examples:
      t3d compare mini_compare
      t3d compare mini_compare --seeds '[0]' --num_workers 4 --output runs/quick

    Args:
        dry_run: only say what would be done, and what it would take.
        rates: folder of measured decode.json and train.json, from which --dry_run tells times.
        smoke: every stage on a handful of examples, into OUTPUT-smoke, to see that all works.
        progress: show progress bars.
    """
    _walk(CompareConfig(**recipe), dry_run, rates, smoke, progress)


def _walk(
    config: RunConfig, dry_run: bool, rates: Path | None, smoke: bool, progress: bool
) -> None:
    """The one path of `run` and `compare`."""
    from t3d.evaluation.comparison import Comparison
    from t3d.experiment.plan import SMOKE, plan, shrink
    from t3d.experiment.run import walk
    from t3d.report.comparison import comparison_sections
    from t3d.report.sheets import render_terminal
    from t3d.report.trajectories import render_responses

    if smoke:
        config = shrink(config)
        print(SMOKE, file=sys.stderr)
    if dry_run:
        show(plan_table(plan(config, rates)))
        return
    # Libraries print to stdout, which belongs to the results.
    with redirect_stdout(sys.stderr):
        cells, problems = walk(config, progress=progress)
    if not cells:
        return
    if smoke:
        print(SMOKE)
    show(render_terminal(comparison_sections(Comparison(cells), config.recommended)))
    if problems:
        question, _, views = problems[0]
        settings = config.evaluation.settings
        fewest = min(range(len(settings)), key=lambda i: settings[i].denoising_steps)
        # The original at full steps, then every method at the fewest.
        full = views[:1] if fewest else []
        show(render_responses(question, [*full, *views[fewest :: len(settings)]]), "")
    names = "results.json comparison.json report.md report.tex accuracy.png trajectories.html"
    print_paths(config.output, *(n for n in names.split() if (config.output / n).exists()))


def pretrain_command(
    output: Path | None = None, *, dry_run: bool = False, progress: bool = True, **recipe: Any
) -> None:
    """Train a small model from nothing, or adapt a checkpoint, such as a converted one.

    It learns a task's worked answers, or chats and texts of your own (`data`). A killed run
    continues from its last checkpoint when the same command is given again.

    Examples:
      t3d pretrain mini_teacher --output runs/teacher
      t3d pretrain --task my/folder --training.learning_rate 1e-3 --output runs/own
      t3d pretrain my.yaml --model runs/converted --data.path chats.jsonl --output runs/adapted

    Args:
        output: directory of the checkpoint; needed unless with --dry_run.
        dry_run: only say what would be done, and what it would take.
        progress: show progress bars.
    """
    config = PretrainConfig(**recipe)

    from t3d.experiment.plan import plan_pretraining
    from t3d.experiment.rounds import check_training, is_trained
    from t3d.training.pretrain import pretrain, pretraining_method, read_lesson

    pretraining_method(config)
    if dry_run:
        show(plan_table(plan_pretraining(config)))
        return
    if output is None:
        raise ValueError("pretrain writes a checkpoint; name its directory with --output")
    if config.data is None:
        for task in config.tasks:
            get_task(task, data=config.folder)
    check_training(None, config.training, config.num_examples, output)
    check_output(output, RECIPE)
    with redirect_stdout(sys.stderr):
        # What cannot be learned claims no directory, so that the corrected command finds it free.
        lesson = None if is_trained(output) else read_lesson(config)
        claim(output, asdict(config), None)
        if lesson is not None:
            pretrain(config, output, lesson=lesson, progress=progress)
    print_paths(output)


def rollout_command(
    model: str,
    output: Path,
    task: str = "mini_gsm",
    data: Path | None = None,
    protocol: ProtocolName = "standard",
    num_prompts: int = 4000,
    num_responses: int = 1,
    data_seed: int = 0,
    prompts: Path | None = None,
    dtype: Dtype = "auto",
    *,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Let a teacher decode prompts, and record every step in a trajectory store.

    A killed rollout continues when the same command is given again.

    Examples:
      t3d rollout --model mini_teacher --num_prompts 1000 --output runs/store
          --decoding.max_new_tokens 96
      t3d rollout --model my/checkpoint --prompts questions.jsonl --output runs/store

    Args:
        model: the teacher: a checkpoint directory, a Hub name, or mini_teacher.
        output: directory of the store.
        task: the benchmark whose training prompts are decoded, or a folder or a .jsonl of your
            own; their answers are not read.
        data: folder of the benchmark's files; by default what `t3d data download` fetched.
        protocol: standard, or t3d for the prompts of T3D's authors byte for byte.
        num_prompts: prompts of the task.
        num_responses: responses to each prompt, every one a trajectory; they differ as far as the
            temperature lets them.
        data_seed: seed of the task's training problems, where they are generated.
        prompts: your own prompts instead: .jsonl with the key question (and `domain: code` where it
            asks for a program), or .txt, one a line.
        dtype: number format of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU.
        progress: show progress bars.
    """
    check_number("num_prompts", num_prompts, "[0, inf)", whole=True)
    check_number("num_responses", num_responses, "[1, inf)", whole=True)
    config = RolloutConfig(**settings)
    if prompts is None:
        asked = get_task(task, data=data, protocol=protocol)
    else:
        asked, num_prompts = OwnQuestions(prompts, protocol), sys.maxsize
    examples = repeated(asked, num_responses).examples("train", num_prompts, seed=data_seed)

    from t3d.decoding.rollout import rollout
    from t3d.models.loading import from_pretrained

    rollout(from_pretrained(model, dtype=dtype), examples, output, config, progress=progress)
    print(f"{output}: {len(examples)} trajectories")


def train_command(
    model: str,
    trajectories: Path,
    output: Path,
    training: TrainingConfig = TrainingConfig(),  # noqa: B008, the command line shows its fields
    *,
    progress: bool = True,
    **method: Any,
) -> None:
    """Distill a teacher's trajectories into a student.

    A killed run continues from its last checkpoint when the same command is given again.
    This is one round on the trajectories given; `t3d run` walks the rounds of a method.

    Example:
      t3d train --model mini_teacher --trajectories runs/store --method t3d --output runs/student
          --objective.beta 0.2 --training.steps 300

    Args:
        model: where the student starts: the teacher that made the trajectories.
        trajectories: a complete trajectory store.
        output: directory of the student.
        training: settings of the optimisation.
        progress: show progress bars.
    """
    config = MethodConfig(**method)

    from t3d.core.store import TrajectoryStore
    from t3d.core.trajectory import training_rows
    from t3d.experiment.rounds import check_training, is_trained
    from t3d.experiment.rows import num_tokens, own_training
    from t3d.training.distill import distill
    from t3d.training.methods import build_method
    from t3d.training.sharding import load_student

    if config.start is not None:
        raise ValueError("start: --model says where the student starts; leave --start out")
    if build_method(config).data == "labelled":
        raise ValueError(
            f"method {config.method!r} trains on labelled answers, a store has none; "
            "name it in a recipe of `t3d run`"
        )
    store = TrajectoryStore.open(trajectories)
    rows = store.read_complete()
    _check_decoding(config, store.manifest.decoding, trajectories)
    check_training(config, training, len(rows), output)
    if build_method(config).advantage is not None:
        raise ValueError(
            f"method {config.method!r} trains on what its student decodes and earns, round after "
            "round; name it in a recipe of `t3d run`"
        )
    rows = rows[: config.num_sequences]
    student = load_student(model, training.sharding)
    size = student.model.config.vocab_size
    for row in rows:
        if max(row.prompt_ids + row.response_ids) >= size:
            raise ValueError(
                f"{trajectories}: {row.prompt_id!r} has token ids beyond the {size} of {model}; "
                "train the model that made the trajectories, or one with its tokenizer"
            )
    recipe = {
        "model": model,
        "trajectories": asdict(store.manifest),
        "method": asdict(config),
        "training": asdict(training),
    }
    claim(output, recipe, student.weights_hash)
    if not is_trained(output):
        with redirect_stdout(sys.stderr):
            distill(
                student,
                training_rows(rows),
                config,
                own_training(config, training),
                output,
                notes={"tokens_decoded": num_tokens(rows)},
                progress=progress,
            )
    print_paths(output)


def _check_decoding(config: MethodConfig, made: dict[str, Any], trajectories: Path) -> None:
    """Check that a method's `decoding` says what a store's trajectories were decoded with.

    Raises:
        ValueError: for an unknown key, a value that does not fit, or another one than the store's.
    """
    from t3d.experiment.rows import own_decoding

    names = {field.name for field in fields(DecodingConfig)}
    known: dict[str, Any] = {"denoising_steps": 1} | {key: made[key] for key in names & made.keys()}
    for student in (False, True):
        own_decoding(DecodingConfig(**known), config, student=student)
    for key, value in config.decoding.items():
        if value != made.get(key, value):
            raise ValueError(
                f"method {config.method}: decoding: {key} is {value!r}, but {trajectories} was "
                f"decoded with {made[key]!r}; leave it out or roll out again"
            )
