"""The reference decoder for tests: one request, no cache, plain Python. Simple enough to trust.

Every pass runs the whole sequence so far, so nothing can be stale, misplaced or padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch

from t3d.core.blocks import BlockLayout
from t3d.core.rng import fold, uniform
from t3d.core.trajectory import FinishReason
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Completion, Passes, Request
from t3d.decoding.sampling import initial_ids, sample
from t3d.models.attention import attention_mask
from t3d.models.block_diffusion import BlockDiffusionLM


def _entropy(logits: list[float], banned: Collection[int]) -> float:
    """Entropy (nats) of the distribution over the ids that are not banned."""
    allowed = [x for token, x in enumerate(logits) if token not in banned]
    top = max(allowed)
    weights = [math.exp(x - top) for x in allowed]
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)


def _choose(
    config: DecodingConfig,
    step: int,
    confidence: dict[int, float],
    noise: dict[int, float],
    entropy: dict[int, float],
) -> set[int]:
    """The positions of a window that commit; the masked ones are the keys of the mapping."""
    size, steps = config.window_size, config.denoising_steps
    if config.remasking == "ancestral":
        return {p for p in noise if noise[p] < 1 / (steps - step)}
    if config.remasking == "entropy_bounded":
        order = sorted(entropy, key=lambda p: (entropy[p], p))
        num = 1
        while num < len(order) and sum(entropy[p] for p in order[:num]) <= config.entropy_bound:
            num += 1
        return set(order[:num])
    quota = size // steps + (1 if step < size % steps else 0)
    if config.remasking == "sequential":
        return set(sorted(confidence)[:quota])
    if config.remasking == "random":
        return set(sorted(noise, key=lambda p: (-noise[p], p))[:quota])
    chosen = set(sorted(confidence, key=lambda p: (-confidence[p], p))[:quota])
    if config.remasking == "low_confidence_dynamic":
        chosen |= {p for p in confidence if confidence[p] > config.confidence_threshold}
    return chosen


@torch.inference_mode()
def decode_one(
    model: BlockDiffusionLM,
    request: Request,
    config: DecodingConfig,
    *,
    mask_token_id: int,
    stop_token_ids: Collection[int],
    banned_token_ids: Collection[int] = (),
    on_state: Callable[[int, list[int]], None] | None = None,
) -> Completion:
    """Decode one request.

    Args:
        config: decoding setting, unless the request has one of its own.
        on_state: called before every denoising step with the block's first position and ids.
    """
    config = request.settings(config)
    layout = BlockLayout(config.block_size)
    implementation = model.config._attn_implementation
    assert implementation is not None
    never = {mask_token_id, *banned_token_ids}
    banned = torch.tensor(sorted(never))
    prompt_length = len(request.prompt_ids)
    max_new_tokens = request.num_new(config)
    limit = prompt_length + max_new_tokens
    first, last = layout.span(prompt_length, max_new_tokens)
    initial = initial_ids(
        request.seed,
        range(prompt_length, last),
        random_share=config.random_share,
        mask_token_id=mask_token_id,
        banned_token_ids=banned_token_ids,
        vocab_size=model.config.vocab_size,
    )
    ids = list(request.prompt_ids)
    step_map: dict[int, int] = {}
    log_prob: dict[int, float] = {}
    num_passes = 0
    reason: FinishReason = "length"
    num_response_tokens = max_new_tokens

    step = 0
    for window in range(first, last, config.window_size):
        start = layout.floor(window)
        end = start + config.block_size
        if window == start:
            ids += initial[len(ids) - prompt_length : end - prompt_length]
            step = 0
        masked = [p for p in range(window, window + config.window_size) if p >= prompt_length]
        first_step = step
        while masked and reason == "length":
            if on_state is not None:
                on_state(start, ids[start:])
            grid = layout.clean(torch.tensor([end]), end)
            mask = attention_mask(implementation, grid, grid, model.dtype)
            logits = model(torch.tensor([ids]), mask).logits[0, masked]
            num_passes += 1
            keys = fold(torch.tensor(request.seed), torch.tensor(masked), step)
            candidates = sample(logits, uniform(keys), banned, config)
            confidence = dict(zip(masked, candidates.confidence.tolist(), strict=True))
            noise = dict(zip(masked, uniform(fold(keys, 1)).tolist(), strict=True))
            entropy = {
                p: _entropy(row, never) for p, row in zip(masked, logits.tolist(), strict=True)
            }
            chosen = _choose(config, step - first_step, confidence, noise, entropy)
            for i, p in enumerate(masked):
                if p in chosen:
                    ids[p] = int(candidates.ids[i])
                    step_map[p] = step
                    log_prob[p] = float(candidates.log_probs[i])
            masked = [p for p in masked if p not in chosen]
            step += 1
            for p in range(max(start, prompt_length), min(end, limit)):
                if p not in step_map:
                    break
                if ids[p] in stop_token_ids:
                    reason = "stop"
                    num_response_tokens = p + 1 - prompt_length
                    break
        if reason == "stop":
            break

    response = range(prompt_length, len(ids))
    return Completion(
        response_ids=[ids[p] if p in step_map else mask_token_id for p in response],
        step_map=[step_map.get(p, -1) for p in response],
        log_probs=[log_prob.get(p, 0.0) for p in response],
        num_response_tokens=num_response_tokens,
        finish_reason=reason,
        passes=Passes(denoising=num_passes),
        initial_ids=initial[: len(response)],
    )
