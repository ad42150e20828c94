"""SDAR (JetAstra/SDAR): Qwen3 with a block mask; its mixture of experts: Qwen3-MoE."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from t3d.models.block_diffusion import BlockDiffusionConfig, BlockDiffusionLM


class SDARConfig(Qwen3Config, BlockDiffusionConfig):  # type: ignore[override]
    """Qwen3's configuration, the training block size and the mask token."""

    model_type = "sdar"


class SDARForCausalLM(BlockDiffusionLM, Qwen3ForCausalLM):  # type: ignore[override]
    """Block-diffusion language model in the SDAR family."""

    config_class = SDARConfig
    config: SDARConfig  # type: ignore[assignment]


class SDARMoeConfig(Qwen3MoeConfig, BlockDiffusionConfig):
    """Qwen3-MoE's configuration, the training block size and the mask token."""

    model_type = "sdar_moe"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # The objectives have no auxiliary loss for the router.
        self.output_router_logits = False

    def to_diff_dict(self) -> dict[str, Any]:
        """The content of config.json; other engines need `num_experts`, which transformers drops.

        transformers 5 writes only `num_local_experts`.
        """
        return {**super().to_diff_dict(), "num_experts": self.num_experts}


class SDARMoeForCausalLM(BlockDiffusionLM, Qwen3MoeForCausalLM):  # type: ignore[override]
    """SDAR as a mixture of experts (30B-A3B)."""

    config_class = SDARMoeConfig
    config: SDARMoeConfig  # type: ignore[assignment]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # The library decides by the source text of this file, which does not mention its experts.
        return True


AutoConfig.register("sdar", SDARConfig)
AutoModelForCausalLM.register(SDARConfig, SDARForCausalLM)
AutoConfig.register("sdar_moe", SDARMoeConfig)
AutoModelForCausalLM.register(SDARMoeConfig, SDARMoeForCausalLM)
# Checkpoints store each expert's tensors separately; the model in memory stacks them.
_experts = get_checkpoint_conversion_mapping("qwen3_moe")
assert _experts is not None
register_checkpoint_conversion_mapping("sdar_moe", _experts)
