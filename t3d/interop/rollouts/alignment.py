"""Align a response's text and step map with token ids; what cannot be aligned is not imported.

The step map of JetEngine (jetengine_ext/engine/scheduler.py, which T3D's authors and dLLM-RL
share) has one number a token, up to and including the one that decoding stopped on: the forward
pass that committed it, counted from 1 over the whole response, 0 for none. Every pass commits a
token, so the numbers of a block begin where those of the block before end, and have no gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import NEVER, Trajectory
from t3d.models import LanguageModel

Reason = Literal["lost", "text", "length", "mask", "uncommitted", "blocks", "prompt"]
"""Why a response is not taken: `lost` is empty, as their writer leaves what it lost; `text` does
not determine token ids; `length` differs between ids and step map; `mask` holds the mask token;
`uncommitted` holds a token that no step committed; `blocks` has a step map that is not one of
blocks of this size; `prompt` cannot be written as a chat template around one question, or holds a
control token where only text may stand."""


@dataclass(frozen=True)
class Skipped:
    """A response that was not taken."""

    entry: int
    """Number of the entry in the JSON list, or of the trajectory in the store, from 0."""
    sample: int
    """Number of the response within its entry, from 0."""
    prompt_id: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class TransferReport:
    """Counts of the responses of a source that were taken, and reasons of those that were not."""

    source: str
    output: str
    num_taken: int
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Skipped responses by reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.skipped).most_common())

    @property
    def summary(self) -> str:
        """A text of a few lines: how many were taken, and why the others were not."""
        total = self.num_taken + len(self.skipped)
        lines = [f"{self.output}: {self.num_taken} of {total} trajectories"]
        lines += [f"  left out: {reason} {count}" for reason, count in self.counts.items()]
        return "\n".join(lines)

    def require_some(self) -> None:
        """Raise ValueError, with the reasons, if nothing was taken."""
        if self.num_taken:
            return
        counts = ", ".join(f"{reason} {count}" for reason, count in self.counts.items())
        first = self.skipped[0]
        raise ValueError(
            f"{self.source}: none of {len(self.skipped)} responses can be taken ({counts}); "
            f"the first, {first.prompt_id!r}: {first.detail}"
        )


class UnalignedError(Exception):
    """The reason why one response is not taken."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


def encode(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that hold their special tokens."""
    return lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def check_text(lm: LanguageModel, ids: list[int], text: str, same: bool) -> None:
    """Raise UnalignedError unless a text stands for these ids and no others.

    Args:
        same: whether the tokenizer decodes the ids to the text and encodes the text to the ids.
    """
    if not same:
        raise UnalignedError("text", "the tokenizer does not give the same text and ids back")
    # Any byte that is no valid character is written as this one, so its value is lost.
    if "\ufffd" in text:
        raise UnalignedError("text", "the text holds U+FFFD, which stands for lost bytes")
    if lm.mask_token_id in ids:
        raise UnalignedError("mask", "the text holds the mask token")


def align(lm: LanguageModel, ids: list[int], step_map: list[int]) -> list[int]:
    """The leading ids that the step map covers.

    Where a decoder stops on a token, repetitions of it are padding, which no step map covers.

    Raises:
        UnalignedError: if there are not as many ids as steps.
    """
    num = len(step_map)
    if len(ids) == num:
        return ids
    stop = ids[min(num, len(ids)) - 1]
    if stop in lm.stop_token_ids and ids.index(stop) == num - 1 and {stop}.issuperset(ids[num:]):
        return ids[:num]
    hint = ""
    if len(ids) + 1 == num and not set(lm.stop_token_ids) & set(ids):
        hint = ", which may be a stop token that the text lacks"
    raise UnalignedError(
        "length", f"the text has {len(ids)} tokens, its step map {num} entries{hint}"
    )


def steps_within_blocks(step_map: list[int], prompt_length: int, block_size: int) -> list[int]:
    """Translate numbers of passes, from 1 over the response, into steps of each block, from 0.

    Raises:
        UnalignedError: if blocks of this size, on the absolute grid, were not decoded one after
            another with at least one token a pass.
    """
    wrong = next((i for i, step in enumerate(step_map) if step < 1), None)
    if wrong is not None:
        raise UnalignedError(
            "uncommitted", f"token {wrong} has step {step_map[wrong]}, none below 1"
        )
    end = prompt_length + len(step_map)
    steps: list[int] = []
    done = 0
    positions = enumerate(step_map, start=prompt_length)
    for number, group in groupby(positions, key=lambda item: item[0] // block_size):
        block = [step for _, step in group]
        num_passes = max(block) - done
        # The step map lacks the tokens of the last block behind the stop token.
        num_unknown = max(0, (number + 1) * block_size - end)
        if min(block) <= done or num_passes - len(set(block)) > num_unknown:
            raise UnalignedError(
                "blocks",
                f"the block of positions {number * block_size} to {(number + 1) * block_size - 1} "
                f"has the steps {_short(block)} after {done} passes; "
                "is block_size right, and the prompt the one that was decoded?",
            )
        steps += [step - done - 1 for step in block]
        done += num_passes
    return steps


def _short(steps: list[int]) -> str:
    return f"{', '.join(map(str, steps[:8]))}{', ...' if len(steps) > 8 else ''}"


def make_trajectory(
    lm: LanguageModel,
    prompt_ids: list[int],
    ids: list[int],
    step_map: list[int],
    block_size: int,
    *,
    prompt_id: str,
    answer: str | None,
) -> Trajectory:
    """A trajectory up to the end of the block that holds the first stop token.

    Their decoder goes on behind `<|im_end|>`, t3d's does not. Tokens that the step map lacks are
    recorded as never committed; log-probabilities are 0.

    Args:
        ids: token ids of the text, at least one.
        step_map: steps as JetEngine counts them, at least one.

    Raises:
        UnalignedError: if they cannot be aligned.
    """
    ids = align(lm, ids, step_map)
    steps = steps_within_blocks(step_map, len(prompt_ids), block_size)
    stop = next((i for i, token in enumerate(ids) if token in lm.stop_token_ids), None)
    num_response_tokens = len(ids) if stop is None else stop + 1
    end = BlockLayout(block_size).ceil(len(prompt_ids) + num_response_tokens) - len(prompt_ids)
    ids, steps = ids[:end], steps[:end]
    num_unknown = end - len(ids)
    return Trajectory(
        prompt_id=prompt_id,
        prompt_ids=prompt_ids,
        response_ids=ids + [lm.mask_token_id] * num_unknown,
        initial_ids=[lm.mask_token_id] * end,
        step_map=steps + [-1] * num_unknown,
        log_probs=[0.0] * end,
        num_response_tokens=num_response_tokens,
        finish_reason="length" if stop is None else "stop",
        block_size=block_size,
        answer=answer,
    )


def passes(trajectory: Trajectory) -> list[int]:
    """The step map up to and including the stop token, counted as JetEngine does.

    Raises:
        UnalignedError: if a token was never committed.
    """
    order = trajectory.decode_order()[: trajectory.num_response_tokens]
    if NEVER in order:
        raise UnalignedError("uncommitted", f"token {order.index(NEVER)} was never committed")
    return [rank + 1 for rank in order]
