"""The input of an objective: loss tokens, and the models' predictions there.

M counts the loss tokens of all sequences and views of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from t3d.core.trajectory import TrajectoryBatch

CHUNK_LOGITS = 1 << 25
"""Largest number of logits that exist at a time: 128 MB in float32."""


@dataclass(frozen=True)
class LossTokens:
    """The loss tokens of a batch, in order of sequence, view and position."""

    target: Tensor
    """Token id of x0 at each loss position, int64 [M]."""
    sequence: Tensor
    """Row of the batch that each token is in, int64 [M]."""
    view: Tensor
    """Number of the noised copy that each token is in, from 0, int64 [M]."""
    position: Tensor
    """Absolute position of each token, int64 [M]."""
    block: Tensor
    """Number of the block on the absolute grid, int64 [M]."""
    weight: Tensor
    """The noiser's weight, float32 [M]."""
    masked: Tensor
    """Whether x_t hides the token, bool [M]. Visible ones take path consistency's loss only."""
    num_sequences: int
    num_views: int
    num_response_tokens: Tensor
    """Number of response tokens of each sequence, int64 [B]."""

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sum over the loss tokens of each sequence, [M] -> [B]."""
        zeros = values.new_zeros(self.num_sequences)
        return zeros.index_add(0, self.sequence, values)

    def sequence_mean(self, values: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Mean over the (chosen) loss tokens of each sequence, [M] -> [B]; 0 where none."""
        return grouped_mean(values, self.sequence, self.num_sequences, chosen)

    def view_mean(self, values: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Mean over the (chosen) loss tokens of each view, [M] -> [B, views]; 0 where none."""
        group = self.sequence * self.num_views + self.view
        mean = grouped_mean(values, group, self.num_sequences * self.num_views, chosen)
        return mean.view(self.num_sequences, self.num_views)

    @cached_property
    def blocks(self) -> tuple[Tensor, Tensor]:
        """Each token's group among the G blocks of all views, [M], and their sequences, [G]."""
        rows = torch.stack([self.sequence, self.view, self.block], 1)
        groups, group = rows.unique(dim=0, return_inverse=True)
        return group, groups[:, 0]


def grouped_mean(
    values: Tensor, group: Tensor, num_groups: int, chosen: Tensor | None = None
) -> Tensor:
    """Mean of the (chosen) values of each group, [M] -> [num_groups]; 0 where there are none."""
    ones = torch.ones_like(values) if chosen is None else chosen.to(values.dtype)
    zeros = values.new_zeros(num_groups)
    count = zeros.index_add(0, group, ones)
    return zeros.index_add(0, group, values * ones) / count.clamp(min=1)


class _Projection(torch.autograd.Function):
    """Logits [m, V] of hidden states [m, H] by the head's weights [V, H].

    Chunks add their gradients of the weights in place. torch's own linear layer would return a
    transposed view for each chunk, and each sum of two would take the memory of the weights again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return hidden @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        hidden, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ hidden if ctx.needs_input_grad[1] else None


class _LogProbs(torch.autograd.Function):
    """Log-probabilities of some tokens, with a backward pass that makes one tensor [m, V].

    Autograd would make five: one for logsumexp, one for every gather, and their sums.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        normalizer = logits.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(logits, normalizer, ids)
        return logits.gather(-1, ids) - normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        logits, normalizer, ids = ctx.saved_tensors
        probs = (logits - normalizer).exp_()
        return probs.mul_(-grad.sum(-1, keepdim=True)).scatter_add_(-1, ids, grad), None


class Distributions:
    """Predicted distributions over the vocabulary at m loss tokens."""

    def __init__(self, logits: Tensor) -> None:
        """`logits` is [m, V]; log-probabilities are at least float32."""
        self.logits = logits.float() if logits.dtype.itemsize < 4 else logits

    def log_prob(self, *ids: Tensor) -> Tensor:
        """Log-probability of one token a position, [m] -> [m], or of K at once, -> [K, m]."""
        log_probs = _LogProbs.apply(self.logits, torch.stack(ids, -1))
        return log_probs.squeeze(-1) if len(ids) == 1 else log_probs.T

    @cached_property
    def log_probs(self) -> Tensor:
        """All log-probabilities, [m, V]."""
        return self.logits.log_softmax(-1)

    def without(self, banned: Tensor) -> Distributions:
        """The distributions that decoding draws from, in which the ids `banned` are impossible."""
        return Distributions(self.logits.index_fill(-1, banned, -torch.inf))

    def argmax(self) -> Tensor:
        """Most likely token, [m]."""
        return self.logits.argmax(-1)

    def entropy(self, temperature: float) -> Tensor:
        """Entropy of the tempered distribution in nats, [m]."""
        log_probs = (self.logits / temperature).log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)


@dataclass(frozen=True)
class Predictions:
    """A model's predictions at the loss tokens, held as hidden states and the head.

    The logits of all loss tokens may take more memory than the model; `read` makes them in chunks.
    """

    hidden: Tensor
    """Hidden states, [M, H]."""
    head: Callable[[Tensor], Tensor]
    """Function that makes logits [m, V] of any m rows of `hidden`."""
    vocab_size: int

    @classmethod
    def of_hidden(cls, hidden: Tensor, weight: Tensor) -> Predictions:
        """Predictions from hidden states [M, H] and the head's weights [V, H], of one dtype."""
        return cls(hidden, lambda rows: _Projection.apply(rows, weight), len(weight))  # type: ignore[arg-type]

    @classmethod
    def of_logits(cls, logits: Tensor) -> Predictions:
        """Predictions from logits [M, V]."""
        return cls(logits, lambda rows: rows, logits.shape[-1])

    def __getitem__(self, chosen: Tensor) -> Predictions:
        """Predictions at some of the tokens, chosen by bool [M] or by their numbers."""
        return replace(self, hidden=self.hidden[chosen])

    def detach(self) -> Predictions:
        """The same without gradient."""
        return Predictions(self.hidden.detach(), torch.no_grad()(self.head), self.vocab_size)


def read(
    function: Callable[..., tuple[Tensor, ...]], *inputs: Predictions | Tensor
) -> tuple[Tensor, ...]:
    """Apply a function to the loss tokens, a chunk of them at a time.

    The logits of a chunk are freed after it, and the backward pass computes them again, unless one
    chunk was enough.

    Args:
        function: takes `Distributions` at m tokens in place of every `Predictions`, and m rows of
            every tensor. Each token's result must depend on its own rows alone.
        inputs: predictions at the same M tokens, and tensors [M, ...].

    Returns:
        The results of `function` for all tokens.
    """
    rows = [i.hidden if isinstance(i, Predictions) else i for i in inputs]
    wide = max(i.vocab_size for i in inputs if isinstance(i, Predictions))
    chunks = list(zip(*(t.split(max(1, CHUNK_LOGITS // wide)) for t in rows), strict=True))

    def run(*chunk: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(inputs, chunk, strict=True)
        return function(
            *(Distributions(i.head(t)) if isinstance(i, Predictions) else t for i, t in pairs)
        )

    if len(chunks) > 1 and torch.is_grad_enabled():
        results = [
            checkpoint(run, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
    else:
        results = [run(*chunk) for chunk in chunks]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


class Context:
    """Runs the forward pass of student, reference and teacher, each at most once a step."""

    def __init__(
        self,
        tokens: LossTokens,
        *,
        student: Callable[[], Predictions],
        reference: Callable[[], Predictions] | None = None,
        teacher: Callable[[], Predictions] | None = None,
        sample_keys: Tensor,
        batch: TrajectoryBatch | None = None,
        banned: Sequence[int] = (),
    ) -> None:
        """
        Args:
            tokens: the loss tokens.
            student: function that runs the student, as the next two run their model.
            reference: a frozen earlier copy of the student.
            teacher: the frozen model that training started from.
            sample_keys: keys for drawn tokens, int64 [M].
            batch: the sequences, for objectives of what was recorded and rewarded.
            banned: ids that decoding never generates.
        """
        self.tokens = tokens
        self.sample_keys = sample_keys
        self.banned = torch.tensor(banned, dtype=torch.int64, device=sample_keys.device)
        self._batch = batch
        self._student = student
        self._reference = reference
        self._teacher = teacher

    @property
    def batch(self) -> TrajectoryBatch:
        assert self._batch is not None, "the context was made without its batch"
        return self._batch

    @cached_property
    def student(self) -> Predictions:
        return self._student()

    @cached_property
    def reference(self) -> Predictions:
        """A frozen earlier copy of the student; no gradient."""
        assert self._reference is not None, "the method did not ask for a reference model"
        with torch.no_grad():
            return self._reference().detach()

    @cached_property
    def teacher(self) -> Predictions:
        """The frozen model that training started from; no gradient."""
        assert self._teacher is not None, "the method did not ask for a teacher model"
        with torch.no_grad():
            return self._teacher().detach()

    def surprise(self) -> Tensor:
        """The student's -log p of the targets, [M]."""
        target = self.tokens.target
        return read(lambda p, target: (-p.log_prob(target),), self.student, target)[0]


class Objective(Protocol):
    """Function that computes a loss per sequence, [B], and detached scalar metrics."""

    needs_reference: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]: ...
