"""Settings of decoding and of recording trajectories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from t3d.core.ranges import check_choices, check_ranges

Remasking = Literal[
    "low_confidence_static",
    "low_confidence_dynamic",
    "sequential",
    "entropy_bounded",
    "random",
    "ancestral",
]
Confidence = Literal["untempered", "tempered"]
STATIC = "low_confidence_static"
DYNAMIC = "low_confidence_dynamic"


@dataclass(frozen=True)
class DecodingConfig:
    """Decoding setting of a block-diffusion model.

    With one block as long as the sequence it is full-sequence masked diffusion (MDLM,
    arXiv:2406.07524; LLaDA, arXiv:2502.09992), with windows inside it LLaDA's
    semi-autoregressive decoding.

    >>> t3d.DecodingConfig(block_size=8, denoising_steps=2).tokens_per_step
    4.0

    Args:
        block_size: tokens a block.
        denoising_steps: forward passes a window at most; as many as it has tokens are full
            steps, and more make sense for ancestral only. entropy_bounded takes as many as its
            bound asks for.
        remasking: which masked positions commit after a pass.
        confidence_threshold: low_confidence_dynamic commits every position above it.
        entropy_bound: nats; entropy_bounded commits, in order of rising entropy, as many
            positions as keep the sum of their entropies without the largest at or under it.
        temperature: temperature of candidate sampling; 0 takes the most likely token.
        top_k: sample among the k most likely tokens; 0 for all.
        top_p: sample among the smallest set of tokens with this total probability.
        max_new_tokens: response tokens at most, rounded up to a whole last block.
        window: tokens that commit, left to right, before the next of the same block do; the
            whole block if None. It divides block_size and bounds no attention.
        random_share: share of response positions that start as a random token instead of the
            mask token (ReDi's coupled noise, arXiv:2507.15897); they count as masked until
            they are committed.
        confidence: what orders positions and is held against the threshold: the candidate's own
            probability, or, as in the code that T3D's authors released, that after temperature,
            top_k and top_p, which a low temperature brings close to 1.
        draft_states: denoising states of a block that one forward pass runs at most. With 1 each
            step takes a pass. With more the steps to come are drafted from the last prediction, and
            the next pass verifies them: the same output in fewer passes, each of more tokens. As
            many as denoising_steps hold a whole draft; further ones hold the same tokens in other
            orders, which helps where confidence decides the order.
        draft_model: a checkpoint directory or Hub name that drafts, such as a few-step student of
            the model, or the directory of a LoRA adapter, which the model's own weights then carry;
            by default the model itself. Each draft then takes a pass of that model.
    """

    block_size: int = 4
    denoising_steps: int = 4
    remasking: Remasking = "low_confidence_static"
    confidence_threshold: float = 0.9
    temperature: float = 0.1
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256
    window: int | None = None
    random_share: float = 0.0
    entropy_bound: float = 0.1
    confidence: Confidence = "untempered"
    draft_states: int = 1
    draft_model: str | None = None

    @property
    def window_size(self) -> int:
        """Number of tokens of a window; that of the block where there are no windows."""
        return self.block_size if self.window is None else self.window

    @property
    def tokens_per_step(self) -> float:
        """The nominal speed-up: tokens a window over its denoising steps."""
        return self.window_size / self.denoising_steps

    @property
    def is_untempered(self) -> bool:
        """Whether candidates are drawn from the model's own distribution."""
        return (self.temperature, self.top_k, self.top_p) == (1, 0, 1)

    @property
    def effective(self) -> DecodingConfig:
        """The same decoding, with every field that has no effect at one value."""
        changes: dict[str, Any] = {}
        if self.remasking != DYNAMIC:
            changes["confidence_threshold"] = DecodingConfig.confidence_threshold
        if self.remasking == "entropy_bounded":
            changes["denoising_steps"] = self.window_size
        else:
            changes["entropy_bound"] = DecodingConfig.entropy_bound
        if self.temperature == 0:
            changes |= {"top_k": DecodingConfig.top_k, "top_p": DecodingConfig.top_p}
        if self.temperature == 0 or self.remasking not in (STATIC, DYNAMIC):
            changes["confidence"] = DecodingConfig.confidence
        if self.window == self.block_size:
            changes["window"] = None
        if self.most_states == 1:
            changes |= {"draft_states": 1, "draft_model": None}
        return replace(self, **changes)

    @property
    def full(self) -> DecodingConfig:
        """The same setting at full steps: one token a step, in order of confidence, each step a
        pass."""
        changed = replace(self, remasking=STATIC, denoising_steps=self.window_size, draft_states=1)
        return changed.effective

    @property
    def rank(self) -> tuple[float | bool | str, ...]:
        """Sort key of settings: temperature, block size, then static first and slow before fast."""
        # Decoding is faster with a lower threshold and with a higher entropy bound.
        speed = (self.tokens_per_step, -self.confidence_threshold, self.entropy_bound)
        rest = (self.window_size, self.max_new_tokens, self.top_k, self.top_p, self.random_share)
        kind = (
            self.remasking != STATIC,
            self.remasking,
            self.confidence,
            self.draft_states,
            self.draft_model or "",
        )
        return self.temperature, self.block_size, *kind, *speed, *rest

    @cached_property
    def most_states(self) -> int:
        """Number of a block's states in one pass at most, with drafts of every order."""
        # A single step leaves nothing to draft.
        single = self.denoising_steps == 1 and self.remasking != "entropy_bounded"
        if single or self.order_is_known:
            return min(self.draft_states, self.denoising_steps)
        # A huge window has no fewer states than are asked for, so its power is not computed.
        size = min(self.window_size, self.draft_states.bit_length())
        return min(self.draft_states, 2**size - 1)

    @property
    def counts_are_known(self) -> bool:
        """Whether the number of tokens that a pass commits is known before it runs: one step a
        pass, by a strategy with a fixed quota."""
        return self.most_states == 1 and self.remasking in (STATIC, "sequential", "random")

    @property
    def order_is_known(self) -> bool:
        """Whether positions commit in an order that no prediction changes."""
        return self.remasking in ("sequential", "random", "ancestral")

    @property
    def pace(self) -> str:
        """Tokens a step, or the number that determines the speed instead, as a column's name."""
        if self.remasking == DYNAMIC:
            return f"> {self.confidence_threshold:g}{self._drafts}"
        if self.remasking == "entropy_bounded":
            return f"entropy ≤ {self.entropy_bound:g}{self._drafts}"
        kind = "" if self.remasking == STATIC else f" {self.remasking}"
        return f"{self.tokens_per_step:.3g}{kind}{self._drafts}"

    @property
    def _drafts(self) -> str:
        """The end of a label, where states are drafted."""
        if self.most_states == 1:
            return ""
        drafter = "" if self.draft_model is None else f" of {self.draft_model}"
        return f", {self.draft_states} draft states{drafter}"

    @property
    def label(self) -> str:
        """Two lines for tables: the speed, and the settings that give it."""
        num = self.effective.denoising_steps
        steps = f"{num} step{'s' if num > 1 else ''}"
        if self.remasking == DYNAMIC:
            return f"dynamic > {self.confidence_threshold:g}\n≤ {steps}{self._drafts}"
        if self.remasking == "entropy_bounded":
            return f"entropy ≤ {self.entropy_bound:g}\n≤ {steps}{self._drafts}"
        tokens = "token" if self.tokens_per_step == 1 else "tokens"
        kind = "" if self.remasking == STATIC else f", {self.remasking}"
        full = ", full" if self.tokens_per_step == 1 else ""
        return f"{self.tokens_per_step:.3g} {tokens}/step\n{steps}{kind}{full}{self._drafts}"

    @property
    def name(self) -> str:
        """A file name that no other setting has."""
        name = f"block{self.window_size}-steps{self.denoising_steps}-{self.remasking}"
        if self.remasking == DYNAMIC:
            name += f"-{self.confidence_threshold:g}"
        return f"{name}-temperature{self.temperature:g}-{self.digest}"

    @property
    def digest(self) -> str:
        """Eight characters of a hash over all fields."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "[1, inf)": "block_size denoising_steps max_new_tokens window draft_states",
                "[0, 1]": "confidence_threshold random_share",
                "[0, inf)": "temperature top_k entropy_bound",
                "(0, 1]": "top_p",
            },
        )
        check_choices(self, "remasking confidence")
        bound = f"{'block_size' if self.window is None else 'window'}={self.window_size}"
        if self.block_size % self.window_size:
            raise ValueError(f"window must divide block_size={self.block_size}, got {self.window}")
        if self.denoising_steps > self.window_size and self.remasking != "ancestral":
            raise ValueError(
                f"denoising_steps must be at most {bound}, unless remasking is ancestral, "
                f"got {self.denoising_steps}"
            )


_IN_LABELS = {
    *("denoising_steps", "remasking", "confidence_threshold", "entropy_bound"),
    *("draft_states", "draft_model"),
}


def labels(
    settings: Iterable[DecodingConfig], *, beside: Iterable[str] = ()
) -> dict[DecodingConfig, str]:
    """The label of each setting, followed by every other field in which some of them differ.

    Args:
        settings: the settings that are shown together, in the order of the result.
        beside: fields that are shown elsewhere, such as in a table's title.
    """
    found = {setting: asdict(setting) for setting in settings}
    names = [
        name
        for name in asdict(DecodingConfig())
        if name not in _IN_LABELS
        and name not in beside
        and len({fields[name] for fields in found.values()}) > 1
    ]
    return {
        setting: setting.label + "".join(f",\n{_said(name, fields[name])}" for name in names)
        for setting, fields in found.items()
    }


def _said(name: str, value: object) -> str:
    return f"no {name}" if value is None else f"{name} {value}"


def one_line(label: str) -> str:
    """A label for running text, on one line."""
    return label.replace(",\n", ", ").replace("\n", ", ")


@dataclass(frozen=True)
class RolloutConfig:
    """Settings of a rollout, which records trajectories.

    Args:
        decoding: decoding setting of the teacher.
        seed: seed of candidate sampling; each prompt's random numbers depend on it and its own id.
        batch_size: prompts decoded at the same time.
        shard_size: prompts a shard of the store, which is what a killed run loses at most.
        memory_share: share of the device's memory that decoding may take; prompts wait for room.
            By default 0.9 on a GPU, and no bound on a CPU.
        patience: seconds to wait for other ranks while none of them finishes a prompt.
    """

    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    seed: int = 0
    batch_size: int = 256
    shard_size: int = 512
    memory_share: float | None = None
    patience: float = 1800.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "[1, inf)": "batch_size shard_size",
                "(0, 1]": "memory_share",
                "(0, inf]": "patience",
                "(-inf, inf)": "seed",
            },
        )
