"""What an objective sees: loss tokens, and what student and reference predict there.

M counts the loss tokens of all sequences and views of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossTokens:
    """The loss tokens of a batch, in row-major order of the training layout."""

    target: Tensor
    """x0 at the loss positions, int64 [M]."""
    sequence: Tensor
    """Row of the batch, int64 [M]."""
    weight: Tensor
    """The noiser's weight, float32 [M]."""
    num_sequences: int
    num_response_tokens: Tensor
    """int64 [B]."""

    def sequence_sum(self, values: Tensor) -> Tensor:
        """[M] -> [B]."""
        zeros = values.new_zeros(self.num_sequences)
        return zeros.index_add(0, self.sequence, values)

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Mean over the loss tokens of each sequence, [M] -> [B]; 0 where there are none."""
        count = self.sequence_sum(torch.ones_like(values))
        return self.sequence_sum(values) / count.clamp(min=1)


class Predictions:
    """What a model predicts at the loss tokens."""

    def __init__(self, logits: Tensor) -> None:
        """`logits` is [M, V]; log-probabilities are at least float32."""
        self.logits = logits.float() if logits.dtype.itemsize < 4 else logits

    @cached_property
    def log_normalizer(self) -> Tensor:
        """log sum exp of the logits, [M]."""
        return self.logits.logsumexp(-1)

    def log_prob(self, ids: Tensor) -> Tensor:
        """Log-probability of one token a position, [M] -> [M]."""
        return self.logits.gather(-1, ids[:, None]).squeeze(-1) - self.log_normalizer

    @cached_property
    def log_probs(self) -> Tensor:
        """All log-probabilities, [M, V]."""
        return self.logits - self.log_normalizer[:, None]

    def argmax(self) -> Tensor:
        """Most likely token, [M]."""
        return self.logits.argmax(-1)


class Context:
    """Runs the student's and the reference's forward pass, each at most once a step."""

    def __init__(
        self,
        tokens: LossTokens,
        student: Callable[[], Tensor],
        reference: Callable[[], Tensor] | None,
        sample_keys: Tensor,
    ) -> None:
        """Callables return logits [M, V]; `sample_keys` is int64 [M], for drawn tokens."""
        self.tokens = tokens
        self.sample_keys = sample_keys
        self._student = student
        self._reference = reference

    @cached_property
    def student(self) -> Predictions:
        return Predictions(self._student())

    @cached_property
    def reference(self) -> Predictions:
        """A frozen earlier copy of the student; no gradient."""
        assert self._reference is not None, "the method did not ask for a reference model"
        with torch.no_grad():
            return Predictions(self._reference())


class Objective(Protocol):
    """A loss per sequence, [B], and detached scalar metrics."""

    @property
    def needs_reference(self) -> bool: ...

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]: ...
