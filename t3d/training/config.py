"""Settings of training runs.

Reading and checking them needs neither torch nor transformers, so that the command line answers
a wrong call at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from t3d.core.dtypes import Dtype
from t3d.core.ranges import check_choices, check_ranges
from t3d.tasks import get_task, mixture
from t3d.tasks.base import Example
from t3d.tasks.chat import ChatData

Attention = Literal["auto", "sdpa", "flex_attention"]
OptimizerName = Literal["adamw", "muon"]
FrozenDtype = Literal["float32", "bfloat16"]
Sharding = Literal["none", "full"]
Schedule = Literal["cosine", "constant"]
SEEDS = "[0, 4294967296)"
"""Interval of seeds, which is what numpy takes: transformers seeds it as well."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (arXiv:2106.09685) in the layers of a model that stays frozen.

    Args:
        rank: rank of an adapter.
        alpha: an adapter's output is scaled by alpha / rank.
        dropout: share of an adapter's input that is dropped in training.
        target_modules: names of linear layers; by default those of attention and MLP, of a
            mixture of experts those of attention.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        check_ranges(self, {"[1, inf)": "rank alpha", "[0, 1)": "dropout"}, where="lora: ")
        if self.target_modules is not None and not self.target_modules:
            raise ValueError("lora: target_modules is empty; name layers, or leave it out")


@dataclass
class TrainingConfig:
    """Optimisation, shared by pretraining and every method.

    Args:
        steps: optimizer steps.
        batch_size: sequences an optimizer step, over all processes.
        micro_batch_size: sequences in one forward pass of a process; gradients are accumulated
            over as many passes as make batch_size.
        block_sizes: block sizes to train at, one drawn for each optimizer step.
        optimizer: adamw, or muon (arXiv:2502.16982), which trains the matrices of the layers and
            leaves embeddings, norms and head to AdamW at a quarter of the rate.
        learning_rate: peak rate; the default is for billions of parameters, a million takes 1e-3
            (adamw) to 8e-3 (muon).
        weight_decay: decoupled, of either optimizer.
        beta2: beta2 of AdamW; beta1 is 0.9.
        warmup_steps: steps of linear warm-up, before the schedule.
        schedule: cosine, to a tenth of the peak, or constant.
        max_grad_norm: norm to which larger gradients are clipped.
        save_seconds: time between checkpoints, from which a killed run resumes; longer where
            writing them would take over a tenth of the time. 0 is after every step, .inf never.
        logging_steps: steps between logged metrics.
        report_to: trackers of transformers, such as tensorboard or wandb.
        dtype: number format of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU.
            Weights, gradients and moments of what is trained are float32 always.
        frozen_dtype: number format of the weights of reference and teacher; in bfloat16 they take
            half the memory, and their predictions are rounded.
        activation_checkpointing: compute activations again in the backward pass instead of keeping
            them: the memory of one layer in place of all, for about a third more time.
        attention: sdpa, or flex_attention, which skips masked blocks but has no backward pass on a
            CPU; auto is flex_attention on a GPU. Decoding has an attention of its own.
        sharding: full splits weights, gradients, optimizer states and the frozen copies over all
            processes (FSDP2); with none every process holds all of them.
        seed: seed of data order and noise.
        lora: train low-rank adapters beside the frozen weights; by default all weights.
        trainer: further transformers.TrainingArguments by name.
    """

    steps: int = 1000
    batch_size: int = 64
    micro_batch_size: int = 64
    block_sizes: list[int] = field(default_factory=lambda: [4, 8])
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    beta2: float = 0.999
    warmup_steps: int = 20
    schedule: Schedule = "cosine"
    max_grad_norm: float = 1.0
    save_seconds: float = 30.0
    logging_steps: int = 10
    report_to: list[str] = field(default_factory=list)
    dtype: Dtype = "auto"
    frozen_dtype: FrozenDtype = "float32"
    activation_checkpointing: bool = False
    attention: Attention = "auto"
    sharding: Sharding = "none"
    seed: int = 0
    lora: LoraSettings | None = None
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "[1, inf)": "steps batch_size micro_batch_size logging_steps block_sizes",
                "[0, inf)": "learning_rate weight_decay warmup_steps max_grad_norm",
                "[0, inf]": "save_seconds",
                "[0, 1)": "beta2",
                SEEDS: "seed",
            },
        )
        if not self.block_sizes:
            raise ValueError("block_sizes is empty; name at least one size")
        check_choices(self, "attention sharding optimizer schedule dtype frozen_dtype")
        if self.optimizer == "muon" and (self.sharding == "full" or self.lora is not None):
            key = "lora" if self.lora is not None else "sharding"
            raise ValueError(f"optimizer: muon needs whole matrices; leave out {key}, or use adamw")
        if self.frozen_dtype != "float32" and self.lora is not None:
            raise ValueError(
                "frozen_dtype: with lora, frozen models share the base's weights; leave out one"
            )
        if self.sharding == "full" and self.lora is not None:
            raise ValueError(
                "sharding: full trains all weights; leave lora out, or set sharding to none: "
                "adapters are small, and the base is held once"
            )

    def check_enough(self, num_sequences: int) -> None:
        """Raise ValueError if the training sequences do not make one batch."""
        if num_sequences < self.batch_size:
            raise ValueError(
                f"{num_sequences} training sequences are fewer than batch_size={self.batch_size}; "
                "take more or a smaller batch"
            )


@dataclass
class MethodConfig:
    """A method, and the settings in which it differs from the published ones.

    Args:
        method: name in the table of methods.
        noiser: settings of its noiser to replace, such as level_power.
        objective: settings of its objective to replace, such as beta.
        reference_every: optimizer steps of a reference round, for methods with a reference.
        rounds: how many times trajectories are made, first by the teacher, then by the student.
        verify: whether the teacher's trajectory stands in for a student's with another answer.
        decoding: settings to replace where its trajectories are decoded, such as random_share.
        student_decoding: settings to replace further where the student's own are decoded.
        advantage: settings of its rewards to replace, such as group_size, for reinforcement.
        start: where its student starts, instead of the teacher: an earlier method of the recipe, of
            the same seed, or the directory of a student. Its cost counts as this one's, and it
            decodes in the first of several rounds, too.
        compat: with upstream, naive_td and t3d train as the authors' released code does.
        num_sequences: number of training sequences, or of prompts for reinforcement, taken from
            the beginning; by default all.
        learning_rate: replaces the learning rate of the shared training settings.
        steps: replaces their optimizer steps.
    """

    method: str
    noiser: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    reference_every: int | None = None
    rounds: int | None = None
    verify: bool | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    student_decoding: dict[str, Any] = field(default_factory=dict)
    advantage: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    compat: str | None = None
    num_sequences: int | None = None
    learning_rate: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        counts = "reference_every rounds num_sequences steps"
        check_ranges(
            self,
            {"[1, inf)": counts, "[0, inf)": "learning_rate"},
            where=f"method {self.method}: ",
        )


@dataclass
class ModelShape:
    """Shape of a new SDAR model; the vocabulary comes from the tokenizer."""

    hidden_size: int = 96
    intermediate_size: int = 288
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 24
    max_position_embeddings: int = 256
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        counts = "hidden_size intermediate_size num_attention_heads"
        counts += " num_key_value_heads head_dim max_position_embeddings"
        ranges = {"[1, inf)": counts, "[1, 1000]": "num_hidden_layers", "(0, inf)": "rope_theta"}
        check_ranges(self, ranges, where="shape: ")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"shape: num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"shape: head_dim must be even, got {self.head_dim}")


@dataclass
class PretrainConfig:
    """Pretraining of a small model on a benchmark's training split, or adapting a checkpoint.

    Args:
        model: a checkpoint to train further; None for a new model of `shape` with a tokenizer of
            its own.
        task: the benchmark whose worked answers are learned, or several, whose problems take
            turns; of a folder or a .jsonl of your own the worked answers are `reference`.
        folder: folder of the benchmark's files; by default the one of `t3d data download`.
        data: chats or texts to adapt the model to, instead of the task's answers.
        num_examples: largest number of training problems, or of rows of `data`.
        data_seed: seed of the training problems of generated tasks.
        vocab_size: largest number of tokens of the tokenizer, which is learned from the problems.
        shape: shape of a new model.
        num_views: noised copies of a sequence in one pass.
        prompt_loss: whether prompts take loss as well; by default only responses do.
        weighting: weight of the loss at a masked token: nelbo, or uniform.
        training: settings of the optimisation.
    """

    model: str | None = None
    task: str | list[str] = "mini_gsm"
    folder: Path | None = None
    data: ChatData | None = None
    num_examples: int = 96_000
    data_seed: int = 1
    vocab_size: int = 1024
    num_views: int = 1
    prompt_loss: bool = False
    weighting: str = "nelbo"
    shape: ModelShape = field(default_factory=ModelShape)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "[0, inf)": "num_examples",
                "(-inf, inf)": "data_seed",
                "[1, inf)": "vocab_size num_views",
            },
        )
        if not self.tasks:
            raise ValueError("task: the list is empty; name a task")
        if self.data is not None and self.folder is not None:
            raise ValueError("folder: holds a task's files; leave it out beside data")

    def examples(self) -> list[Example]:
        """The training problems of the task, or in turns of several.

        Raises:
            ValueError: for an unknown task, or one whose files are missing or damaged.
        """
        task = mixture([get_task(name, data=self.folder) for name in self.tasks])
        return task.examples("train", self.num_examples, seed=self.data_seed)

    @property
    def tasks(self) -> list[str]:
        return [self.task] if isinstance(self.task, str) else self.task
