"""The start x_T of decoding, and candidate tokens: pure functions of keys, logits and uniforms.

Letters in shapes: M positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from t3d.core.rng import fold, other_token, uniform
from t3d.decoding.config import DecodingConfig

LOGITS_AT_ONCE = 2**26
"""Number of logits that are worked on at the same time, so that the memory that this takes does not
grow with the batch."""
SEGMENT = 128
"""Number of ids whose probabilities are summed before the cumulative distribution is formed."""


@dataclass(frozen=True)
class Candidates:
    """One candidate token a position."""

    ids: Tensor
    """Token ids of the candidates, int64 [M]."""
    log_probs: Tensor
    """Untempered log-probability (nats), float32, or float64 for float64 logits, [M]."""
    confidence: Tensor
    """Probability by which positions are ordered, `DecodingConfig.confidence`, [M]."""


def initial_ids(
    seed: int,
    positions: range,
    *,
    random_share: float,
    mask_token_id: int,
    banned_token_ids: Collection[int],
    vocab_size: int,
) -> list[int]:
    """x_T at response positions: the mask token or, with probability `random_share`, a random one.

    The random token is drawn from those that may be generated. Everything is a pure function of
    the request's seed and the absolute position (ReDi, arXiv:2507.15897).
    """
    if random_share == 0:
        return [mask_token_id] * len(positions)
    at = torch.arange(positions.start, positions.stop)
    # Step -1 is before all denoising steps, which count from 0.
    keys = fold(torch.tensor(seed), at, -1)
    token = other_token(fold(keys, 1), vocab_size, {mask_token_id, *banned_token_ids})
    return torch.where(uniform(keys) < random_share, token, mask_token_id).tolist()


def allowed_logits(logits: Tensor, banned: Tensor) -> Tensor:
    """Logits [M, V] with the ids `banned` [K] impossible; at least float32."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.to(dtype, copy=True).index_fill_(-1, banned, -torch.inf)


def allowed_log_probs(logits: Tensor, banned: Tensor) -> Tensor:
    """Log-softmax of logits [M, V] with the ids `banned` [K] impossible; at least float32."""
    return allowed_logits(logits, banned).log_softmax(-1)


def likeliest(logits: Tensor, banned: Tensor, num: int) -> list[dict[int, float]]:
    """The `num` likeliest tokens at each position of logits [M, V], in order, with their untempered
    log-probabilities (nats); those of the ids `banned` [K] are left out."""
    log_probs, ids = allowed_log_probs(logits, banned).topk(min(num, logits.shape[-1]))
    rows = zip(ids.tolist(), log_probs.tolist(), strict=True)
    return [
        {token: value for token, value in zip(*row, strict=True) if value > -torch.inf}
        for row in rows
    ]


def entropies(logits: Tensor, banned: Tensor) -> Tensor:
    """Entropy (nats) of the untempered distribution without the banned ids, [M]."""
    parts = logits.split(_rows_at_once(logits))
    own = (allowed_logits(part, banned).softmax(-1) for part in parts)
    return torch.cat([torch.special.entr(probs).sum(-1) for probs in own])


def _rows_at_once(logits: Tensor) -> int:
    return max(LOGITS_AT_ONCE // logits.shape[-1], 1)


def sampling_probs(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities [M, V]: temperature, then top-k, then top-p of what is left, not normalised.

    Equal probabilities rank by id, so top-k keeps exactly k tokens.
    """
    # A smaller temperature is 0 in float32.
    temperature = max(temperature, 1e-30)
    # Softmax, since `exp` is ten times as slow on a CPU where its results underflow.
    probs = (logits - logits.amax(-1, keepdim=True)).div_(temperature).softmax(-1)
    if top_k == 0 and top_p == 1:
        return probs
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        ranked[..., top_k:] = 0
    if top_p < 1:
        before = ranked.cumsum(-1, dtype=torch.float64) - ranked
        total = ranked.sum(-1, keepdim=True, dtype=torch.float64)
        ranked.masked_fill_(before >= top_p * total, 0)
    return probs.scatter_(-1, order, ranked)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """An id for each row of `probs` [M, V], as `inverse_cdf` draws it; int64 [M].

    The segment is drawn first and then an id of it, so only sums of segments are float64.
    """
    if probs.shape[-1] <= SEGMENT:
        return inverse_cdf(probs.double(), uniforms)
    whole = probs.shape[-1] // SEGMENT * SEGMENT
    sums = probs[:, :whole].unflatten(-1, (-1, SEGMENT)).sum(-1, dtype=torch.float64)
    sums = torch.cat([sums, probs[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], -1)
    segment = inverse_cdf(sums, uniforms)[:, None]
    own, last = (values.gather(-1, segment) for values in (sums, sums.cumsum(-1)))
    share = (uniforms * sums.sum(-1) - (last - own)[:, 0]) / own[:, 0]
    ids = segment * SEGMENT + torch.arange(SEGMENT, device=probs.device)
    inside = ids < probs.shape[-1]
    few = probs.gather(-1, torch.where(inside, ids, 0)).double() * inside
    return ids.gather(-1, inverse_cdf(few, share.clamp(0, 1 - 2.0**-53))[:, None])[:, 0]


def inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first id whose cumulative share exceeds the uniform, int64 [M].

    Args:
        probs: float64 [M, V], not normalised. An id of probability 0 is never returned.
        uniforms: float64 [M] in [0, 1).
    """
    # A parallel prefix sum may round upwards at an id of probability 0, which must never be drawn.
    cumulative = probs.cumsum(-1).masked_fill(probs == 0, 0)
    bound = uniforms * cumulative.amax(-1)
    return (cumulative > bound[..., None]).to(torch.uint8).argmax(-1)


def sample(
    logits: Tensor, uniforms: Tensor | None, banned: Tensor, config: DecodingConfig
) -> Candidates:
    """Draw a candidate for each position; temperature 0 takes the likeliest, lowest id first.

    Args:
        logits: [M, V].
        uniforms: float64 [M] in [0, 1); temperature 0 needs none.
        banned: int64 [K], ids that are never drawn.
        config: temperature, top_k, top_p and confidence.
    """
    rows = _rows_at_once(logits)
    if len(logits) <= rows:
        return _sample(logits, uniforms, banned, config)
    given = [None] * -(-len(logits) // rows) if uniforms is None else uniforms.split(rows)
    pairs = zip(logits.split(rows), given, strict=True)
    found = [_sample(*pair, banned, config) for pair in pairs]
    return Candidates(
        torch.cat([own.ids for own in found]),
        torch.cat([own.log_probs for own in found]),
        torch.cat([own.confidence for own in found]),
    )


def _sample(
    logits: Tensor, uniforms: Tensor | None, banned: Tensor, config: DecodingConfig
) -> Candidates:
    logits = allowed_logits(logits, banned)
    if config.temperature == 0:
        # Only the largest logit matters, so the softmax over the vocabulary is left out.
        top, ids = logits.max(-1)
        log_probs = top - logits.logsumexp(-1)
        return Candidates(ids, log_probs, log_probs.exp())
    assert uniforms is not None
    probs = sampling_probs(logits, config.temperature, config.top_k, config.top_p)
    ids = draw(probs, uniforms)
    own, share = (values.gather(-1, ids[:, None])[:, 0] for values in (logits, probs))
    log_probs = own - logits.logsumexp(-1)
    if config.confidence == "untempered":
        return Candidates(ids, log_probs, log_probs.exp())
    return Candidates(ids, log_probs, share / probs.sum(-1))
