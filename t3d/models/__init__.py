"""Models: loading, the SDAR family, attention masks."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from t3d.models.loading import LanguageModel, from_pretrained, wrap
from t3d.models.sdar import SDARConfig, SDARForCausalLM

__all__ = ["LanguageModel", "SDARConfig", "SDARForCausalLM", "from_pretrained", "tiny", "wrap"]


def tiny(
    *,
    vocab_size: int = 64,
    block_size: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **config: Any,
) -> SDARForCausalLM:
    """A random SDAR of a few thousand parameters for tests; the mask is the last token.

    Weights are large, so that predictions differ from position to position.
    """
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = SDARConfig.from_dict(
            {
                "vocab_size": vocab_size,
                "block_size": block_size,
                "mask_token_id": vocab_size - 1,
                **shape,
                **config,
            }
        )
        return cast(SDARForCausalLM, nn.Module.to(SDARForCausalLM(settings).eval(), dtype))
