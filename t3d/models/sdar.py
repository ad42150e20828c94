"""SDAR (JetAstra/SDAR): Qwen3 with a block mask, on the library's own Qwen3 modules.

Weight names and arithmetic are Qwen3's; only the mask differs, and logits are not shifted:
position i predicts token i.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from t3d.blocks import BlockLayout
from t3d.models.attention import attention_mask as build_mask


class SDARConfig(Qwen3Config):
    """Qwen3's configuration, the training block size and the mask token.

    Both are absent from some published checkpoints; `t3d.models.loading` resolves them.
    """

    model_type = "sdar"

    block_size: int | None = None
    mask_token_id: int | None = None

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds, with the top-level fields that other engines read.

        transformers 5 writes only `rope_parameters`; engines that do not know it fall back
        to theta 10000 and give wrong output without an error.
        """
        out = super().to_diff_dict()
        if self.rope_parameters is not None:
            out["rope_theta"] = dict(self.rope_parameters)["rope_theta"]
            out["rope_scaling"] = None
        if out.get("dtype") is not None:
            out["torch_dtype"] = out["dtype"]
        return out


class SDARForCausalLM(Qwen3ForCausalLM):
    """Block-diffusion language model in the SDAR family."""

    config_class = SDARConfig
    config: SDARConfig  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        select: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the masked-token prediction.

        Args:
            input_ids: int64 [B, L].
            attention_mask: a block mask in the form of `t3d.models.attention`; by default
                the block-causal mask of `config.block_size` over whole sequences.
            position_ids: int64 [B, L]; by default 0..L-1.
            past_key_values: a cache whose `update` places keys and values.
            select: bool [B, L], the positions whose logits are wanted. The vocabulary is
                wide, so hidden states are gathered before the head.

        Returns:
            logits [B, L, V], or [M, V] for the M selected positions in row-major order.
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
        hidden = self.model(
            input_ids=input_ids,
            # A mapping is taken as it is: Qwen3Model would otherwise build a causal mask.
            attention_mask={"full_attention": attention_mask},
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            **kwargs,
        ).last_hidden_state
        if select is not None:
            hidden = hidden[select]
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=past_key_values)


AutoConfig.register("sdar", SDARConfig)
AutoModelForCausalLM.register(SDARConfig, SDARForCausalLM)
