"""Models: loading, the families, attention masks."""

from __future__ import annotations

from t3d.models.block_diffusion import BlockDiffusionConfig, BlockDiffusionLM
from t3d.models.families import FAMILIES, Family, family_of
from t3d.models.loading import LanguageModel, from_pretrained, wrap
from t3d.models.sdar import SDARConfig, SDARForCausalLM

__all__ = [
    "FAMILIES",
    "BlockDiffusionConfig",
    "BlockDiffusionLM",
    "Family",
    "LanguageModel",
    "SDARConfig",
    "SDARForCausalLM",
    "family_of",
    "from_pretrained",
    "wrap",
]
