"""Train a block-diffusion model on labelled answers with the NELBO, from scratch or further."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from t3d.methods import build_method
from t3d.models import (
    LanguageModel,
    SDARConfig,
    SDARForCausalLM,
    from_pretrained,
    wrap,
)
from t3d.provenance import hash_weights, provenance, write_json
from t3d.tasks import get_task
from t3d.tasks.base import Example
from t3d.tasks.tokenizer import END_TOKEN, PAD_TOKEN, train_tokenizer
from t3d.training.config import TrainingConfig
from t3d.training.run import fit
from t3d.trajectory import labelled_row


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
        for name, value in asdict(self).items():
            if value < 1 and name != "tie_word_embeddings":
                raise ValueError(f"shape: {name} must be at least 1, got {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"shape: num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"shape: head_dim must be even, got {self.head_dim}")


@dataclass
class PretrainConfig:
    """Pretraining of a small model on a benchmark's training split.

    Args:
        model: a checkpoint to train further; None for a new model of `shape`.
        task: the benchmark whose worked answers are learned.
        num_examples: training problems.
        data_seed: of the benchmark's stream.
        vocab_size: tokens at most of the tokenizer learned from the problems.
        shape: of the model.
        num_views: noised copies of a sequence in one pass.
        training: optimisation.
    """

    model: str | None = None
    task: str = "mini_gsm"
    num_examples: int = 96_000
    data_seed: int = 1
    vocab_size: int = 1024
    num_views: int = 1
    shape: ModelShape = field(default_factory=ModelShape)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def new_model(config: PretrainConfig, examples: list[Example]) -> LanguageModel:
    """A random model and a tokenizer learned from the examples."""
    texts = [text for e in examples[:4000] for text in (e.question, e.reference or "")]
    tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    shape = asdict(config.shape)
    theta = shape.pop("rope_theta")
    with torch.random.fork_rng():
        torch.manual_seed(config.training.seed)
        settings = SDARConfig(
            vocab_size=len(tokenizer),
            block_size=min(config.training.block_sizes),
            pad_token_id=vocabulary[PAD_TOKEN],
            eos_token_id=vocabulary[END_TOKEN],
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            **shape,
        )
        model = SDARForCausalLM(settings)
    return wrap(model, tokenizer, "new")


def labelled_rows(
    lm: LanguageModel, examples: list[Example], block_size: int
) -> list[dict[str, Any]]:
    """Examples with worked answers as training rows.

    Raises:
        ValueError: if an example has no worked answer.
    """
    unanswered = next((e.id for e in examples if e.reference is None), None)
    if unanswered is not None:
        raise ValueError(f"{unanswered}: labelled training needs a worked answer")
    prompts = lm.encode_examples(examples)
    responses = lm.encode_responses([e.reference or "" for e in examples])
    return [
        labelled_row(
            prompt,
            response,
            index,
            fill_id=lm.pad_token_id,
            mask_id=lm.mask_token_id,
            block_size=block_size,
        )
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def pretrain(config: PretrainConfig, output: Path, *, progress: bool = True) -> Path:
    """Train and save a checkpoint; a killed run continues from its last saved step.

    Returns:
        The checkpoint's directory, `output` itself.

    Raises:
        ValueError: for an unknown task, or fewer problems than one batch takes.
    """
    examples = get_task(config.task).examples("train", config.num_examples, seed=config.data_seed)
    method = build_method("sft", noiser={"num_views": config.num_views})
    if config.model is None:
        lm = new_model(config, examples)
    else:
        lm = from_pretrained(config.model, block_size=min(config.training.block_sizes))
    rows = labelled_rows(lm, examples, max(config.training.block_sizes))
    fit(lm, method, rows, config.training, output / "training", progress=progress)
    lm.save(output)
    record = provenance(
        config=asdict(config),
        seed=config.training.seed,
        model=lm.name,
        weights_hash=hash_weights(output),
    )
    write_json(output / "provenance.json", record)
    return output
