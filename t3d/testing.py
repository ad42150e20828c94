"""Models of random weights, for tests and benchmarks."""

from __future__ import annotations

from typing import Any, Literal, cast, overload

import torch
from torch import nn

from t3d.models.block_diffusion import BlockDiffusionLM
from t3d.models.families import family_of
from t3d.models.sdar import SDARForCausalLM

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    # The grouped-expert kernels do not support float64.
    "experts_implementation": "eager",
}


@overload
def tiny(*, family: Literal["sdar"] = "sdar", **settings: Any) -> SDARForCausalLM: ...
@overload
def tiny(*, family: str, **settings: Any) -> BlockDiffusionLM: ...


def tiny(
    *,
    family: str = "sdar",
    vocab_size: int = 64,
    block_size: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **config: Any,
) -> BlockDiffusionLM:
    """A random model of a few thousand parameters for tests; the mask is the last token.

    Weights are large, so that predictions differ from position to position.
    """
    classes = family_of(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = classes.config_class(
            **{
                "vocab_size": vocab_size,
                "block_size": block_size,
                "mask_token_id": vocab_size - 1,
                **_SHAPE,
                **(_EXPERTS if family == "sdar_moe" else {}),
                **config,
            }
        )
        model = classes.model_class(settings).eval()
        return cast(BlockDiffusionLM, nn.Module.to(model, dtype))
