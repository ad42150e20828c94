"""Autoregressive models of transformers as block-diffusion models: only the mask is another.

Weights, their names and the arithmetic stay the library's, and logits are not shifted: position i
predicts token i. A family is one class that inherits from `BlockDiffusionLM` and the library's
model, with a configuration that inherits from the library's and `BlockDiffusionConfig`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from t3d.core.blocks import BlockLayout
from t3d.models.attention import attention_mask as build_mask


class BlockDiffusionConfig(PreTrainedConfig):
    """Adds the training block size and the mask token to the configuration of a family.

    Both are absent from some published checkpoints; `t3d.models.loading` resolves them. This class
    comes after the library's among a family's bases, so that the library's defaults hold.
    """

    block_size: int | None = None
    mask_token_id: int | None = None
    head_dim: int | None = None
    """Size of an attention head, which the decoder's cache needs; computed where a family leaves it
        out."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def has_fixed_rotation(self) -> bool:
        """Whether the rotary embedding of a position depends on no other one."""
        assert self.rope_parameters is not None
        return self.rope_parameters["rope_type"] not in ("dynamic", "longrope")

    def to_diff_dict(self) -> dict[str, Any]:
        """The content of config.json, with the top-level fields that other engines read.

        transformers 5 writes only `rope_parameters`; engines that do not know it fall back
        to theta 10000 and give wrong output without an error.
        """
        out = super().to_diff_dict()
        if self.rope_parameters is not None:
            scaling = dict(self.rope_parameters)
            out["rope_theta"] = scaling.pop("rope_theta")
            out["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
        if out.get("dtype") is not None:
            out["torch_dtype"] = out["dtype"]
        return out


class BlockDiffusionLM(PreTrainedModel):
    """A block-diffusion language model of any family."""

    config: BlockDiffusionConfig  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        select: Tensor | None = None,
        with_head: bool = True,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the masked-token prediction.

        Args:
            input_ids: int64 [B, L].
            attention_mask: a mask made by `t3d.models.attention`; by default the block-causal
                mask of `config.block_size` over whole sequences.
            position_ids: int64 [B, L]; by default 0..L-1.
            cache: a cache of transformers' interface, whose `update` stores keys and values.
            select: the positions whose logits are wanted: bool [B, L], or int64 [M], their numbers
                in row-major order. The vocabulary is wide, so hidden states are gathered before
                the head.
            with_head: whether logits are computed; else the caller applies the head.

        Returns:
            logits [B, L, V], or [M, V] for the M selected positions; bool ones in row-major order.
            Without the head, `hidden_states` is one tensor, what the head would be given.
        """
        if attention_mask is None:
            if self.config.block_size is None:
                raise ValueError("config.block_size is not set; pass attention_mask or set it")
            assert input_ids is not None
            length = torch.full((len(input_ids),), input_ids.shape[1], device=input_ids.device)
            grid = BlockLayout(self.config.block_size).clean(length, input_ids.shape[1])
            implementation = self.config._attn_implementation
            assert implementation is not None
            attention_mask = build_mask(implementation, grid, grid, self.dtype)
        # transformers uses a mask of four dimensions as it is, and makes any other causal.
        assert len(attention_mask.shape) == 4
        decoder, head = self.base_model, self.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        # By position: releases differ in the name of the fourth argument, the cache, not its place.
        hidden = decoder(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            use_cache=cache is not None,
            **kwargs,
        ).last_hidden_state
        if select is not None:
            hidden = hidden.flatten(0, 1)[select.flatten()]
        if not with_head:
            return CausalLMOutputWithPast(hidden_states=(hidden,))
        return CausalLMOutputWithPast(logits=head(hidden))
