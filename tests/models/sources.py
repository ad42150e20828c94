"""Small autoregressive models of every family that converts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from t3d.models import LanguageModel

TEXT = "Tom has 1234 coins,   56 of them in his left pocket.\nHow many are that?"


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


# Configuration, whether embeddings and head are one, embedding rows beyond the tokenizer, result.
SOURCES: dict[str, tuple[type[PretrainedConfig], bool, int, str, str]] = {
    "llama": (LlamaConfig, True, 0, "llama", "LlamaForCausalLM"),
    "llama_untied": (LlamaConfig, False, 5, "llama", "LlamaForCausalLM"),
    "qwen2": (Qwen2Config, True, 5, "qwen2", "Qwen2ForCausalLM"),
    "qwen3": (Qwen3Config, False, 0, "sdar", "SDARForCausalLM"),
    "qwen3_tied": (Qwen3Config, True, 5, "sdar", "SDARForCausalLM"),
    "qwen3_moe": (Qwen3MoeConfig, False, 1, "sdar_moe", "SDARMoeForCausalLM"),
}


def random_model(kind: type[PretrainedConfig], num_rows: int, tied: bool) -> Any:
    extra = EXPERTS if kind is Qwen3MoeConfig else {}
    settings = {**SHAPE, **extra, "vocab_size": num_rows, "tie_word_embeddings": tied}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(kind(**settings)).eval()


@torch.no_grad()
def causal_logits(lm: LanguageModel, ids: Tensor) -> Tensor:
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    return lm.model(ids, attention_mask=mask).logits
