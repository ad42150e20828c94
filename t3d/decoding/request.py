"""Input and output of a decoder: requests, completions and events."""

from __future__ import annotations

from dataclasses import dataclass, field

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import FinishReason
from t3d.decoding.config import DecodingConfig


@dataclass(frozen=True)
class Request:
    """One prompt to decode. Its output depends on nothing but itself, model and config."""

    prompt_ids: list[int]
    seed: int = 0
    max_new_tokens: int | None = None
    """Largest number of response tokens; None for the decoding setting's."""
    config: DecodingConfig | None = None
    """Decoding setting of this request; None for the decoder's."""
    num_alternatives: int = 0
    """Number of the likeliest tokens that events report beside each committed one."""

    def settings(self, default: DecodingConfig) -> DecodingConfig:
        """The decoding setting of this request; `default` is the decoder's."""
        return default if self.config is None else self.config

    def num_new(self, default: DecodingConfig) -> int:
        """The largest number of response tokens."""
        settings = self.settings(default)
        return settings.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens

    def check(self, id: int, config: DecodingConfig, *, vocab_size: int, limit: int) -> int:
        """Number of positions that the request takes.

        Args:
            id: number of the request, for errors.
            config: its decoding setting.
            vocab_size: size of the model's vocabulary.
            limit: largest number of positions that the model takes.

        Raises:
            ValueError: if the request cannot be decoded.
        """
        length, new = len(self.prompt_ids), self.num_new(config)
        _, end = BlockLayout(config.block_size).span(length, new)
        if length == 0:
            raise ValueError(f"request {id}: the prompt is empty; give at least one token")
        if new < 1:
            raise ValueError(f"request {id}: max_new_tokens must be at least 1, got {new}")
        if end > limit:
            raise ValueError(
                f"request {id}: a prompt of {length} tokens and max_new_tokens={new} make "
                f"{end} in whole blocks of {config.block_size}, more than the model's "
                f"max_position_embeddings={limit}; shorten the prompt or lower max_new_tokens"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(
                f"request {id}: seed must lie in [-2^63, 2^63), got {self.seed}; "
                "make one with t3d.core.rng.derive_key"
            )
        for token in self.prompt_ids:
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"request {id}: token id {token} of the prompt lies outside the model's "
                    f"vocabulary of {vocab_size}; encode it with the model's own tokenizer"
                )
        return end


@dataclass(frozen=True)
class Passes:
    """Forward passes that one request took part in, each counted as one of three kinds.

    A pass with a denoising step is a denoising pass, whatever it stored besides: with fused
    commits the first step of the first block stores the prompt as well, and the first step of
    every later block stores the block before.
    """

    prefill: int = 0
    """Number of passes that only stored a part of the prompt."""
    denoising: int = 0
    """Number of passes that ran denoising steps, over all blocks."""
    commit: int = 0
    """Number of passes that only stored a finished block."""
    tokens: int = field(default=0, compare=False)
    """Number of tokens that these passes computed, the prompt's included."""
    drafted: int = field(default=0, compare=False)
    """Number of drafted states that denoising passes verified, `DecodingConfig.draft_states`."""
    accepted: int = field(default=0, compare=False)
    """Number of those that decoding came to: steps that took no pass of their own."""
    drafts: int = field(default=0, compare=False)
    """Number of passes of `DecodingConfig.draft_model`, which are no others of these."""

    @property
    def total(self) -> int:
        return self.prefill + self.denoising + self.commit


@dataclass(frozen=True)
class Completion:
    """A decoded response; fields as in `t3d.core.trajectory.Trajectory`."""

    response_ids: list[int]
    step_map: list[int]
    log_probs: list[float]
    num_response_tokens: int
    finish_reason: FinishReason
    passes: Passes = field(default_factory=Passes)
    initial_ids: list[int] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        """The response up to and including the stop token."""
        return self.response_ids[: self.num_response_tokens]


@dataclass(frozen=True)
class Event:
    """The tokens that one step of the engine committed for one request."""

    id: int
    """Id of the request, as `BlockDecoder.submit` returned it."""
    step: int
    """0-based denoising step within the block."""
    places: list[int]
    """Positions within the response that this step committed, ascending; not always the next
        ones."""
    token_ids: list[int]
    """Token ids that were committed there."""
    log_probs: list[float]
    """Untempered log-probability (nats) of each of them."""
    alternatives: list[dict[int, float]]
    """The likeliest tokens at each of these positions with their log-probabilities (nats), the
    likeliest first; as many as `Request.num_alternatives`."""
    passes: Passes
    """Forward passes of the request so far, this one included."""
    completion: Completion | None = None
    """The finished response, with a request's last event; its `num_response_tokens` may cut
        committed tokens."""
