"""What a recipe will do, computed without a network, a model's weights or any work: `--dry_run`.

Everything is exact, an upper bound that says so, or called unknown.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from t3d.core.files import read_object
from t3d.experiment.adapt import teacher_path
from t3d.experiment.recipe import RunConfig
from t3d.experiment.rounds import check_recipe
from t3d.models.families import family_of, on_meta
from t3d.models.loading import BUILT_IN
from t3d.training.config import PretrainConfig, TrainingConfig
from t3d.training.methods import build_method

UNKNOWN = "unknown"
_FEW_TOKENS = 32
SMOKE = (
    f"t3d: a smoke run: answers are cut at {_FEW_TOKENS} tokens and training is a few steps, "
    "so accuracies mean nothing"
)
"""Stands before and beside the numbers of a shrunken recipe."""
Recipe = TypeVar("Recipe", bound=RunConfig)
Row = tuple[str, str, str]
"""Stage, what, value."""


def shrink(config: Recipe) -> Recipe:
    """The same recipe on a handful of examples, to see that every stage works."""
    evaluation = config.evaluation
    adapt = config.adapt
    if adapt is not None:
        few = replace(adapt.pretrain, num_examples=4, training=_few_steps(adapt.pretrain.training))
        adapt = replace(adapt, pretrain=few)
    settings = tuple(replace(s, max_new_tokens=_FEW_TOKENS) for s in evaluation.settings)
    decoding = replace(config.rollout.decoding, max_new_tokens=_FEW_TOKENS)
    return replace(
        config,
        output=config.output.with_name(config.output.name + "-smoke"),
        data=replace(config.data, num_prompts=4, num_problems=2),
        rollout=replace(config.rollout, decoding=decoding, batch_size=8, shard_size=8),
        methods={name: replace(m, num_sequences=None) for name, m in config.methods.items()},
        training=_few_steps(config.training),
        adapt=adapt,
        evaluation=replace(evaluation, settings=settings, measure_latency=False),
        seeds=config.seeds[:1],
    )


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
    shape = model_shape(config)
    weights = num_parameters(shape)
    name = model_name(config)
    measured = _Rates(rates, name)
    rows: list[Row] = [("model", "name", name), ("model", "parameters", _count(weights))]
    if shape is not None:
        rows.append(("model", "family", str(shape["model_type"])))
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
    new = data.num_prompts * decoding.max_new_tokens
    rows += [
        ("rollout", "prompts", f"{data.num_prompts:,} at most, of {source}"),
        ("rollout", "steps a block", f"{decoding.denoising_steps} of {decoding.block_size}"),
        ("rollout", "tokens", f"{new:,} at most"),
        ("rollout", "memory of keys and values", _cache(shape, config)),
        ("rollout", "time", measured.decoding(new, decoding.denoising_steps)),
    ]
    built = {name: build_method(method) for name, method in config.methods.items()}
    num_students = len(built) * max(1, len(config.seeds))
    copies = 1 + max(
        (m.objective.needs_reference + m.objective.needs_teacher for m in built.values()), default=0
    )
    rows += [
        ("train", "methods", ", ".join(built) or "none"),
        ("train", "students", str(num_students)),
        *training_rows(config.training, weights, copies, measured),
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
    weights = num_parameters(shape)
    name = config.model or "a new model, whose tokenizer is learned first"
    data = ", ".join(config.tasks) if config.data is None else config.data.path
    known = asdict(config.shape) if config.model is None else shape
    if config.data is not None and known is not None:
        config.data.longest(known["max_position_embeddings"], name)
    return [
        ("model", "name", name),
        ("model", "parameters", _count(weights)),
        ("train", "examples", f"{config.num_examples:,} at most, of {data}"),
        *training_rows(config.training, weights, 1, _Rates(None, name)),
    ]


def training_rows(
    config: TrainingConfig, weights: int | None, copies: int, measured: _Rates
) -> list[Row]:
    """One student's training.

    Args:
        weights: parameters of the model.
        copies: models in memory, the student among them.
    """
    sequences = config.steps * config.batch_size
    processes = "a process" if config.batch_size > config.micro_batch_size else "one process"
    # Weights, gradients and AdamW's two moments in float32; frozen copies have weights alone.
    state = None if weights is None else weights * 4 * (4 + copies - 1)
    return [
        ("train", "optimizer steps", _steps(config)),
        ("train", "sequences a pass", f"{config.micro_batch_size} ({processes})"),
        ("train", "memory of weights, gradients and moments", _bytes(state)),
        ("train", "memory of activations", UNKNOWN),
        ("train", "time of a model", measured.training(sequences)),
    ]


def _steps(config: TrainingConfig) -> str:
    return f"{config.steps:,} of {config.batch_size} sequences"


def model_name(config: RunConfig) -> str:
    """The teacher's; a directory of the run where the recipe makes it."""
    return config.model if config.adapt is None else str(teacher_path(config))


def model_shape(config: RunConfig) -> dict[str, Any] | None:
    """config.json of the model where it lies on this machine, else the recipe's `shape`.

    Raises:
        ValueError: for a config.json that cannot be read.
    """
    return _local_shape(model_name(config)) or config.shape or None


def _local_shape(name: str) -> dict[str, Any] | None:
    path = BUILT_IN.get(name, Path(name)) / "config.json"
    return read_object(path) if path.is_file() else None


def num_parameters(shape: dict[str, Any] | None) -> int | None:
    """Parameters of a model of that shape; tied weights count once."""
    if shape is None:
        return None
    return on_meta(family_of(shape["model_type"]).config_class.from_dict(shape)).num_parameters()


class _Rates:
    """Speeds that were measured for this very model; `unknown` for everything else."""

    def __init__(self, folder: Path | None, model: str) -> None:
        self.model = model
        self.rows: dict[str, list[dict[str, Any]]] = {"decode.json": [], "train.json": []}
        if folder is None:
            return
        found = [name for name in self.rows if (folder / name).is_file()]
        if not found:
            raise ValueError(f"{folder}: holds neither decode.json nor train.json of `t3d bench`")
        for name in found:
            document = read_object(folder / name, "measure again with `t3d bench`")
            self.rows[name] = document["rows"]

    def decoding(self, tokens: int, steps: int) -> str:
        rows = [
            (row["tokens_per_second"], row["device"])
            for row in self.rows["decode.json"]
            if row["engine"] == "t3d"
            and row["model"] == self.model
            and row["denoising_steps"] == steps
        ]
        return self._time(tokens, rows)

    def training(self, sequences: int) -> str:
        rows = [
            (row["trajectories_per_second"], row["device"])
            for row in self.rows["train.json"]
            if row["implementation"] == "t3d" and row["model"] == self.model
        ]
        return self._time(sequences, rows)

    @staticmethod
    def _time(work: int, rows: list[tuple[float, str]]) -> str:
        if not rows:
            return UNKNOWN
        rate, device = max(rows)
        return f"{work / rate / 3600:.1f} hours at most on {device}"


def _cache(shape: dict[str, Any] | None, config: RunConfig) -> str:
    """Keys and values of a full batch of responses; the prompts' come on top."""
    if shape is None:
        return UNKNOWN
    heads = shape.get("num_key_value_heads") or shape["num_attention_heads"]
    width = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    token = 2 * shape["num_hidden_layers"] * heads * width * 4
    tokens = config.rollout.batch_size * config.rollout.decoding.max_new_tokens
    return f"{_bytes(token * tokens)} and {_bytes(token)} a prompt token (float32)"


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _bytes(number: int | None) -> str:
    if number is None:
        return UNKNOWN
    size = float(number)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
