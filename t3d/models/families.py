"""The families of block-diffusion models, by the `model_type` of config.json.

A converted Llama or Qwen2 keeps its `model_type` and class name, so that it still loads as what
it was; `block_size` and `mask_token_id` in its config.json say what it became.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import transformers

from t3d.models.block_diffusion import BlockDiffusionConfig, BlockDiffusionLM
from t3d.models.sdar import SDARConfig, SDARForCausalLM, SDARMoeConfig, SDARMoeForCausalLM


class LlamaConfig(transformers.LlamaConfig, BlockDiffusionConfig):
    """Llama's configuration, the training block size and the mask token."""

    # The library's default is an id of Llama 2's tokenizer.
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


class LlamaForCausalLM(BlockDiffusionLM, transformers.LlamaForCausalLM):  # type: ignore[override]
    """Llama with a block mask."""

    config_class = LlamaConfig
    config: LlamaConfig  # type: ignore[assignment]


class Qwen2Config(transformers.Qwen2Config, BlockDiffusionConfig):
    """Qwen2's configuration, the training block size and the mask token."""


class Qwen2ForCausalLM(BlockDiffusionLM, transformers.Qwen2ForCausalLM):  # type: ignore[override]
    """Qwen2 or Qwen2.5 with a block mask."""

    config_class = Qwen2Config
    config: Qwen2Config  # type: ignore[assignment]


@dataclass(frozen=True)
class Family:
    """The classes of a family, and the model types that are converted into it."""

    config_class: type[BlockDiffusionConfig]
    model_class: type[BlockDiffusionLM]
    autoregressive: str
    """Value of `model_type` of the autoregressive models that become this family."""


FAMILIES = {
    "sdar": Family(SDARConfig, SDARForCausalLM, "qwen3"),
    "sdar_moe": Family(SDARMoeConfig, SDARMoeForCausalLM, "qwen3_moe"),
    "llama": Family(LlamaConfig, LlamaForCausalLM, "llama"),
    "qwen2": Family(Qwen2Config, Qwen2ForCausalLM, "qwen2"),
}


def family_of(model_type: object) -> Family:
    """The family of a `model_type`.

    Raises:
        ValueError: if t3d has none.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    if any(family.autoregressive == model_type for family in FAMILIES.values()):
        raise ValueError(
            f"model_type {model_type!r} is autoregressive; convert it first: t3d convert"
        )
    raise ValueError(
        f"model_type {model_type!r} is no block-diffusion family of t3d ({', '.join(FAMILIES)})"
    )


def on_meta(config: BlockDiffusionConfig) -> BlockDiffusionLM:
    """The model that a configuration describes, without any weight in memory."""
    with torch.device("meta"):
        return family_of(config.model_type).model_class(copy.deepcopy(config))
