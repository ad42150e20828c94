"""A model and prompts of 16 tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.models.loading import LanguageModel
from t3d.models.sdar import SDARConfig, SDARForCausalLM
from t3d.tasks.base import Example

VOCABULARY = ["<|MASK|>", "<|pad|>", "<|im_end|>", *"0123456789 ab"]


CONFIG = RolloutConfig(
    DecodingConfig(block_size=4, denoising_steps=2, temperature=1.0, max_new_tokens=12),
    seed=0,
    batch_size=2,
    shard_size=3,
)


def toy_lm() -> LanguageModel:
    """A random model of 16 tokens; float64, so that no two equal runs can differ."""
    torch.manual_seed(0)
    model = SDARForCausalLM(
        SDARConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=32,
            block_size=4,
            mask_token_id=0,
            initializer_range=0.3,
        )
    )
    words = Tokenizer(WordLevel({token: i for i, token in enumerate(VOCABULARY)}, "<|pad|>"))
    words.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = "{{ messages[0].content }} "
    return LanguageModel(model.double().eval(), tokenizer, 0, 1, (2,), "toy", None)


def toy_examples(num: int) -> list[Example]:
    """Prompts of all remainders to the block size."""
    return [Example(f"toy/{i}", f"{i % 10}{'ab' * 2:.{i % 4}}", str(i)) for i in range(num)]


def shards(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / "shards").iterdir())}
