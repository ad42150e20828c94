"""What a recipe will do, computed without a network, a model's weights or any work: `--dry_run`.

Everything is exact, an upper bound that says so, or called unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t3d.bench.config import DECODE, TRAIN
from t3d.core.dtypes import dtype_name, torch_dtype
from t3d.core.files import first_words, read_object
from t3d.core.workers import launched, own_device
from t3d.decoding.budget import cache_bytes_per_token
from t3d.experiment.adapt import teacher_path
from t3d.experiment.recipe import RunConfig
from t3d.experiment.rounds import check_recipe
from t3d.experiment.rows import own_training
from t3d.models import BlockDiffusionLM
from t3d.models.checkpoint import check_checkpoint
from t3d.models.families import family_of, on_meta
from t3d.models.tokenizers import BUILT_IN
from t3d.training.arguments import uses_deepspeed
from t3d.training.config import MethodConfig, PretrainConfig, TrainingConfig
from t3d.training.lora import adapter_parameters
from t3d.training.memory import activation_bytes
from t3d.training.methods import build_method

UNKNOWN = "unknown"
_FEW_TOKENS = 32
_SOME_TOKENS = 128
SMOKE = (
    f"t3d: a smoke run: answers are cut at {_FEW_TOKENS} tokens and training is a few steps, "
    "so accuracies mean nothing"
)
"""Warning that stands before and beside the numbers of a shrunken recipe."""
Row = tuple[str, str, str]
"""Stage, what, value."""


def shrink(config: RunConfig) -> RunConfig:
    """The same recipe on a handful of examples, to see that every stage works."""
    evaluation = config.evaluation
    adapt = config.adapt
    if adapt is not None:
        few = replace(adapt.pretrain, num_examples=4, training=_few_steps(adapt.pretrain.training))
        adapt = replace(adapt, pretrain=few)
    settings = tuple(replace(s, max_new_tokens=_FEW_TOKENS) for s in evaluation.settings)
    decoding = replace(config.rollout.decoding, max_new_tokens=_FEW_TOKENS)
    watch = config.watch
    if watch is not None:
        short = replace(watch.decoding, max_new_tokens=_FEW_TOKENS)
        watch = replace(watch, every=2, num_problems=2, decoding=short)
    return replace(
        config,
        output=config.output.with_name(config.output.name + "-smoke"),
        data=replace(config.data, num_prompts=4, num_responses=1, num_problems=2),
        rollout=replace(config.rollout, decoding=decoding, batch_size=8, shard_size=8),
        methods={name: _few_tokens(method) for name, method in config.methods.items()},
        training=_few_steps(config.training),
        adapt=adapt,
        watch=watch,
        evaluation=replace(evaluation, settings=settings, measure_latency=False),
        seeds=config.seeds[:1],
    )


def _few_tokens(method: MethodConfig) -> MethodConfig:
    """A method whose decoding follows that of the shrunken recipe, and all of its sequences."""
    decoding, student = dict(method.decoding), dict(method.student_decoding)
    for own in (decoding, student):
        own.pop("max_new_tokens", None)
    few = replace(method, num_sequences=None, steps=None, decoding=decoding)
    built = build_method(method)
    if built.advantage is not None:
        few = replace(few, rounds=2, advantage=method.advantage | {"group_size": 2})
    return replace(few, student_decoding=student)


def _few_steps(training: TrainingConfig) -> TrainingConfig:
    return replace(training, steps=4, batch_size=2, micro_batch_size=2, logging_steps=1)


def plan(config: RunConfig, rates: Path | None = None) -> list[Row]:
    """The stages of a run or a comparison.

    Args:
        rates: folder of decode.json and train.json, which `t3d bench` measured.

    Raises:
        ValueError: for settings that do not fit, or a folder without such files.
    """
    check_recipe(config)
    name = model_name(config)
    model = described(_local_shape(name) or config.shape or None)
    measured = [] if rates is None else _measured(rates, name)
    rows: list[Row] = [("model", "name", name), ("model", "parameters", _count(model))]
    if model is not None:
        rows.append(("model", "family", model.config.model_type))
    if config.adapt is not None:
        pretrain = config.adapt.pretrain
        examples = ", ".join(pretrain.tasks) if pretrain.data is None else pretrain.data.path
        rows += [
            ("adapt", "convert", config.adapt.source),
            ("adapt", "examples", f"{pretrain.num_examples:,} at most, of {examples}"),
            ("adapt", "optimizer steps", _steps(pretrain.training)),
        ]
    data, decoding = config.data, config.rollout.decoding
    names = ", ".join(config.tasks)
    source = names if data.prompts is None else str(data.prompts)
    new = data.num_sequences * decoding.max_new_tokens
    fitting = [r for r in measured if r.get("denoising_steps") == decoding.denoising_steps]
    rows += [
        ("rollout", "prompts", f"{data.num_prompts:,} at most, of {source}"),
        ("rollout", "responses a prompt", str(data.num_responses)),
        ("rollout", "steps a block", f"{decoding.denoising_steps} of {decoding.block_size}"),
        ("rollout", "tokens", f"{new:,} at most"),
        ("rollout", "memory of keys and values", _cache(model, config)),
        ("rollout", "time", _time(new, "tokens_per_second", fitting)),
    ]
    built = {name: build_method(method) for name, method in config.methods.items()}
    own = {name: own_training(m, config.training) for name, m in config.methods.items() if m.steps}
    sequences = max(t.steps * t.batch_size for t in (config.training, *own.values()))
    num_students = len(built) * max(1, len(config.seeds))
    copies = 1 + max(
        (m.objective.needs_reference + m.objective.needs_teacher for m in built.values()), default=0
    )
    views = [method.noiser.num_views for method in built.values()]
    shared, *rest = _training(config.training, model, copies)
    rows += [
        ("train", "methods", ", ".join(built) or "none"),
        ("train", "students", str(num_students)),
        shared,
        *(("train", f"optimizer steps of {name}", _steps(t)) for name, t in own.items()),
        *rest,
        ("train", "memory of activations", _activations(config, model, views)),
        ("train", "time of a model", _time(sequences, "trajectories_per_second", measured)),
    ]
    settings = len(config.evaluation.settings)
    problems = f"{data.num_problems:,} at most, of {names} ({data.split})"
    rows += [
        ("evaluate", "problems", problems),
        ("evaluate", "checkpoints x settings", f"{num_students + 1} x {settings}"),
    ]
    return [*rows, ("run", "output", str(config.output))]


def plan_pretraining(config: PretrainConfig) -> list[Row]:
    """The one stage of `t3d pretrain`.

    Raises:
        ValueError: for sequences longer than the model, where its shape is known.
    """
    shape = _local_shape(config.model) if config.model is not None else None
    model = described(shape)
    name = config.model or "a new model, whose tokenizer is learned first"
    data = ", ".join(config.tasks) if config.data is None else config.data.path
    known = asdict(config.shape) if config.model is None else shape
    if config.data is not None and known is not None:
        config.data.longest(known["max_position_embeddings"], name)
    return [
        ("model", "name", name),
        ("model", "parameters", _count(model)),
        ("train", "examples", f"{config.num_examples:,} at most, of {data}"),
        *_training(config.training, model, 1),
        ("train", "memory of activations", UNKNOWN),
        ("train", "time of a model", UNKNOWN),
    ]


def _training(config: TrainingConfig, model: BlockDiffusionLM | None, copies: int) -> list[Row]:
    """One student's training.

    Args:
        model: on the meta device, if its shape is known.
        copies: models that training needs, the student among them.
    """
    processes = "a process" if config.batch_size > config.micro_batch_size else "one process"
    return [
        ("train", "optimizer steps", _steps(config)),
        ("train", "sequences a pass", f"{config.micro_batch_size} ({processes})"),
        ("train", "memory of weights, gradients and moments", _state(config, model, copies)),
    ]


def _state(config: TrainingConfig, model: BlockDiffusionLM | None, copies: int) -> str:
    """Memory that is held from step to step."""
    if model is None or uses_deepspeed(config):
        return UNKNOWN
    weights = model.num_parameters()
    trained = weights if config.lora is None else adapter_parameters(model, config.lora)
    base = 0 if config.lora is None else weights
    # Weights, gradients and two moments of what is trained; frozen copies have weights alone.
    frozen = 2 if config.frozen_dtype == "bfloat16" else 4
    size = 4 * (base + 4 * trained) + frozen * (copies - 1) * trained
    if config.sharding == "none":
        return f"{_bytes(size)} a process"
    _, num = launched()
    return f"{_bytes(size // num)} a process" if num > 1 else f"{_bytes(size)} over all processes"


def _activations(
    config: RunConfig, model: BlockDiffusionLM | None, num_views: Sequence[int | None]
) -> str:
    """Activations of a micro-batch of the longest responses; its prompts come on top.

    Args:
        num_views: those of every method; of methods without a fixed number nothing is known.
    """
    training, response = config.training, config.rollout.decoding.max_new_tokens
    if model is None or model.config.model_type == "sdar_moe" or training.lora is not None:
        return UNKNOWN
    known = [num for num in num_views if num is not None]
    if len(known) < len(num_views):
        return UNKNOWN
    views = max(known, default=1)
    dtype = torch_dtype(training.dtype, own_device())
    # Recipes in bfloat16 are for GPUs, also where they are read on another machine.
    on_gpu = own_device().type == "cuda" or dtype == torch.bfloat16
    flex = training.attention == "flex_attention" or (training.attention == "auto" and on_gpu)

    def taken(prompt: int) -> int:
        return activation_bytes(
            model.config,
            rows=training.micro_batch_size,
            width=prompt + response * (1 + views),
            loss_tokens=training.micro_batch_size * response * views,
            dtype=dtype,
            flex=flex,
            checkpointing=training.activation_checkpointing,
        )

    alone = taken(0)
    each = (taken(_SOME_TOKENS) - alone) // _SOME_TOKENS
    kind = f"{dtype_name(dtype)}, {'flex_attention' if flex else 'sdpa'}"
    return f"{_bytes(alone)} and {_bytes(each)} a prompt token ({kind}, estimated)"


def _steps(config: TrainingConfig) -> str:
    return f"{config.steps:,} of {config.batch_size} sequences"


def model_name(config: RunConfig) -> str:
    """The teacher's name; a directory of the run where the recipe makes the teacher."""
    return config.model if config.adapt is None else str(teacher_path(config))


def _local_shape(name: str) -> dict[str, Any] | None:
    directory = BUILT_IN.get(name, Path(name))
    return check_checkpoint(directory) if (directory / "config.json").is_file() else None


def described(shape: dict[str, Any] | None) -> BlockDiffusionLM | None:
    """A model of that shape, without any weight in memory.

    Raises:
        ValueError: for a shape that no model can have.
    """
    if shape is None:
        return None
    try:
        return on_meta(family_of(shape.get("model_type")).config_class.from_dict(shape))
    # The library says what it refuses by errors of many kinds.
    except Exception as error:
        raise ValueError(
            f"shape: no model can have it ({first_words(error)}); copy the keys from the model's "
            "config.json"
        ) from None


def _measured(folder: Path, model: str) -> list[dict[str, Any]]:
    """The rows of `t3d bench` for this very model, as t3d decodes and trains it."""
    found = [folder / name for name in (DECODE, TRAIN) if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder}: holds neither {DECODE} nor {TRAIN} of `t3d bench`")
    return [
        row
        for path in found
        for row in read_object(path, "measure again with `t3d bench`")["rows"]
        if row["model"] == model and "t3d" in (row.get("engine"), row.get("implementation"))
    ]


def _time(work: int, rate: str, measured: list[dict[str, Any]]) -> str:
    """How long the work takes at the highest rate of this name; unknown without one."""
    rates = [(row[rate], row["device"]) for row in measured if rate in row]
    if not rates:
        return UNKNOWN
    fastest, device = max(rates)
    return f"{work / fastest / 3600:.1f} hours at most on {device}"


def _cache(model: BlockDiffusionLM | None, config: RunConfig) -> str:
    """Keys and values of a full batch of responses; the prompts' come on top."""
    if model is None:
        return UNKNOWN
    dtype = torch_dtype(config.dtype, own_device())
    decoding: Any = nn.Module.to(model, dtype)
    token = cache_bytes_per_token(decoding)
    tokens = config.rollout.batch_size * config.rollout.decoding.max_new_tokens
    return f"{_bytes(token * tokens)} and {_bytes(token)} a prompt token ({dtype_name(dtype)})"


def _count(model: BlockDiffusionLM | None) -> str:
    """Number of parameters; tied weights count once."""
    return UNKNOWN if model is None else f"{model.num_parameters():,}"


def _bytes(number: int) -> str:
    size = float(number)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
