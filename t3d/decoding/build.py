"""A decoder for a loaded model."""

from __future__ import annotations

from collections.abc import Sequence

from t3d.core.rng import derive_key
from t3d.decoding.budget import GPU_SHARE, fitting_cache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import PREFILL_CHUNK, BlockDecoder
from t3d.decoding.request import Completion, Request
from t3d.models.loading import LanguageModel


def make_decoder(
    lm: LanguageModel,
    config: DecodingConfig,
    batch_size: int,
    *,
    fused: bool = True,
    memory_share: float | None = None,
) -> BlockDecoder:
    """The batched decoder for a loaded model.

    Args:
        lm: model, tokenizer and special ids.
        config: decoding setting.
        batch_size: largest number of sequences that run at the same time.
        fused: whether commits are fused, see `BlockDecoder`.
        memory_share: share of the device's memory that weights, cache and passes may take;
            sequences wait for room. By default 0.9 on a GPU, and no bound on a CPU.

    Raises:
        ValueError: for a share that leaves no room.
    """
    if memory_share is None and lm.model.device.type == "cuda":
        memory_share = GPU_SHARE
    cache_tokens = None
    if memory_share is not None:
        cache_tokens = fitting_cache(
            lm.model,
            config,
            memory_share=memory_share,
            batch_size=batch_size,
            prefill_chunk=PREFILL_CHUNK,
        )
    return BlockDecoder(
        lm.model,
        config,
        mask_token_id=lm.mask_token_id,
        stop_token_ids=lm.stop_token_ids,
        banned_token_ids=lm.banned_token_ids,
        batch_size=batch_size,
        fused=fused,
        cache_tokens=cache_tokens,
    )


def generate(
    lm: LanguageModel,
    questions: Sequence[str],
    config: DecodingConfig | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Completion]:
    """Answer questions; `lm.decode(completion.token_ids)` is the text of an answer.

    Raises:
        ValueError: for a question that does not fit the model.
    """
    decoder = make_decoder(lm, config or DecodingConfig(), batch_size)
    prompts = lm.encode_prompts(questions)
    return decoder.decode([Request(ids, derive_key(seed, i)) for i, ids in enumerate(prompts)])
