"""A decoder for a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t3d.core.rng import derive_key
from t3d.decoding.budget import GPU_SHARE, fitting_cache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import PREFILL_CHUNK, BlockDecoder
from t3d.decoding.request import Completion, Request
from t3d.models.adapter import with_adapter
from t3d.models.checkpoint import ADAPTER_FILE
from t3d.models.loading import LanguageModel, from_pretrained


def make_decoder(
    lm: LanguageModel,
    config: DecodingConfig,
    batch_size: int,
    *,
    memory_share: float | None = None,
) -> BlockDecoder:
    """The batched decoder for a loaded model.

    >>> lm = t3d.from_pretrained("mini_teacher")
    >>> config = t3d.DecodingConfig(denoising_steps=2, max_new_tokens=96)
    >>> decoder = t3d.make_decoder(lm, config, batch_size=8)
    >>> [prompt] = lm.encode_examples(t3d.get_task("mini_gsm").examples("test", 1))
    >>> number = decoder.submit(t3d.Request(prompt))
    >>> [event] = decoder.step()
    >>> event.step, len(event.token_ids)
    (0, 2)

    Args:
        lm: model, tokenizer and special ids.
        config: decoding setting.
        batch_size: largest number of sequences that run at the same time.
        memory_share: share of the device's memory that weights, cache and passes may take;
            sequences wait for room. By default 0.9 on a GPU, and no bound on a CPU.

    Raises:
        ValueError: for a share that leaves no room, or as `load_draft_model` does.
    """
    drafter = load_draft_model(lm, config)
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
        cache_tokens=cache_tokens,
        draft_model=None if drafter is None else drafter.model,
    )


def load_draft_model(lm: LanguageModel, config: DecodingConfig) -> LanguageModel | None:
    """The model that drafts for `lm`, if it is another one.

    Raises:
        ValueError: if it cannot be loaded, has another vocabulary or takes fewer tokens.
    """
    name = config.effective.draft_model
    if name is None:
        return None
    if (Path(name) / ADAPTER_FILE).exists():
        return with_adapter(lm, Path(name))
    drafter = from_pretrained(name, device=lm.model.device, dtype=lm.model.dtype)
    sizes = {m.model.config.vocab_size for m in (drafter, lm)}
    if drafter.tokenizer.get_vocab() != lm.tokenizer.get_vocab() or len(sizes) > 1:
        raise ValueError(
            f"draft_model {name} has another tokenizer or other embeddings than {lm.name}; give a "
            "checkpoint that was trained from the same model"
        )
    theirs, ours = (m.model.config.max_position_embeddings for m in (drafter, lm))
    if theirs < ours:
        raise ValueError(
            f"draft_model {name} has {theirs} positions and {lm.name} {ours}; give one with as many"
        )
    return drafter


def generate(
    lm: LanguageModel,
    questions: Sequence[str],
    config: DecodingConfig | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Completion]:
    """Answer questions; `lm.decode(completion.token_ids)` is the text of an answer.

    >>> lm = t3d.from_pretrained("mini_teacher")
    >>> [example] = t3d.get_task("mini_gsm").examples("test", 1)
    >>> config = t3d.DecodingConfig(max_new_tokens=96)
    >>> [completion] = t3d.generate(lm, [example.question], config)
    >>> lm.decode(completion.token_ids)[-10:]
    'boxed{12}.'

    Raises:
        ValueError: for a question that does not fit the model.
    """
    decoder = make_decoder(lm, config or DecodingConfig(), batch_size)
    prompts = lm.encode_prompts(questions)
    return decoder.decode([Request(ids, derive_key(seed, i)) for i, ids in enumerate(prompts)])
