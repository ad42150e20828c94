"""A decoder for a loaded model."""

from __future__ import annotations

from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import DecodingConfig
from t3d.models.loading import LanguageModel


def make_decoder(lm: LanguageModel, config: DecodingConfig, batch_size: int) -> BlockDecoder:
    """The engine, which never generates the mask token, nor pad where it is no stop token."""
    banned = {lm.mask_token_id, lm.pad_token_id} - set(lm.stop_token_ids)
    return BlockDecoder(
        lm.model,
        config,
        mask_token_id=lm.mask_token_id,
        stop_token_ids=lm.stop_token_ids,
        banned_token_ids=tuple(sorted(banned)),
        batch_size=batch_size,
    )
