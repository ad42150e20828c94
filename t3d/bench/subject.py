"""The measured model, a checkpoint or random weights of a published shape, and its device."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from t3d.bench.config import Device, Shape
from t3d.core.dtypes import Dtype, torch_dtype
from t3d.models import LanguageModel, family_of, from_pretrained, wrap
from t3d.tasks.tokenizer import train_tokenizer

_SDAR = {"model_type": "sdar", "block_size": 4, "tie_word_embeddings": False}
_FULL = {**_SDAR, "vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
PRESETS: dict[str, dict[str, Any]] = {
    # For CPUs; the vocabulary is small, so that the layers dominate.
    "sdar-100m": {
        **_SDAR,
        "vocab_size": 8192,
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "head_dim": 64,
    },
    "sdar-1.7b": {
        **_FULL,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "sdar-4b": {
        **_FULL,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
}
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
_NEEDED += ("num_attention_heads", "num_key_value_heads")


def choose_device(device: Device) -> torch.device:
    """The device asked for; auto is the GPU where there is one.

    Raises:
        ValueError: for a GPU that is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU here; give --device cpu")
    cuda = device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def device_name(device: torch.device) -> str:
    """The device's name in rows: the GPU's model, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load_subject(
    model: str | None, shape: Shape | None, device: torch.device, dtype: Dtype
) -> LanguageModel:
    """The checkpoint, or a random model.

    Args:
        model: name or path of a checkpoint, for `from_pretrained`.
        shape: the name of a preset, or keys of config.json; sdar-100m where neither is given.

    Raises:
        ValueError: for both at once, an unknown preset, or a shape that lacks a key.
    """
    if model is not None and shape is not None:
        raise ValueError("give --model for a checkpoint or --shape for random weights, not both")
    if model is not None:
        return from_pretrained(model, device=device, dtype=dtype)
    return random_model(shape or "sdar-100m", device, dtype)


def random_model(shape: Shape, device: torch.device, dtype: Dtype) -> LanguageModel:
    """Random weights, always the same, and a tokenizer of bytes."""
    if isinstance(shape, str) and shape not in PRESETS:
        raise ValueError(f"shape {shape!r} is none of {', '.join(PRESETS)}, and no JSON object")
    document = PRESETS[shape] if isinstance(shape, str) else shape
    missing = [key for key in _NEEDED if key not in document]
    if missing:
        raise ValueError(f"shape: lacks {', '.join(missing)}; copy them from config.json")
    tokenizer = train_tokenizer(["a"], vocab_size=1)
    family = family_of(document.get("model_type", "sdar"))
    config = family.config_class.from_dict(document)
    if config.vocab_size < len(tokenizer):
        raise ValueError(f"shape: vocab_size must be at least {len(tokenizer)}")
    # A shape's mask token id belongs to another tokenizer than this one.
    config.mask_token_id = None
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        # Made in this dtype at once, since a later cast would round the rotary frequencies.
        kind = torch_dtype(dtype, device)
        model = family.model_class._from_config(config, dtype=kind, attn_implementation="sdpa")
    return wrap(model.eval(), tokenizer, shape if isinstance(shape, str) else describe(config))


def describe(config: PreTrainedConfig) -> str:
    """A random model's name in tables."""
    return (
        f"random {config.model_type}, hidden {config.hidden_size}, "
        f"{config.num_hidden_layers} layers, vocabulary {config.vocab_size}"
    )


def ordinary_ids(lm: LanguageModel) -> list[int]:
    """Every token but the mask."""
    return [token for token in range(lm.model.config.vocab_size) if token != lm.mask_token_id]
