"""Muon for the matrices of the layers and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim import Muon as MatrixMuon
from transformers import PreTrainedModel, TrainingArguments

REST_RATE = 0.25
"""Learning rate of embeddings, norms and head, as a share of the matrices'."""


class Muon(Optimizer):
    """Two parameter groups: matrices by torch's Muon, the rest by torch's AdamW without decay.

    Updates of a matrix are orthogonalized and scaled to the size of AdamW's (arXiv:2502.16982).
    Groups and state belong to this optimizer, so schedules and resuming work as with any other.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        rest: list[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """`learning_rate` and `weight_decay` are the matrices'; `betas` and `eps` are AdamW's."""
        rate = learning_rate * REST_RATE
        self._parts: list[Optimizer] = [
            MatrixMuon(
                matrices,
                lr=learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            AdamW(rest, lr=rate, weight_decay=0.0, betas=betas, eps=eps),
        ]
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # Loading a state replaces these objects, so both optimizers are given them anew.
            part.param_groups, part.state = [group], self.state
            part.step()


def muon(model: PreTrainedModel, arguments: TrainingArguments) -> Muon:
    """The optimizer of all weights of a model."""
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    vocabulary = {id(p) for module in outer if module is not None for p in module.parameters()}
    weights = list(model.parameters())
    is_matrix = [p.ndim == 2 and id(p) not in vocabulary for p in weights]
    return Muon(
        [p for p, chosen in zip(weights, is_matrix, strict=True) if chosen],
        [p for p, chosen in zip(weights, is_matrix, strict=True) if not chosen],
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )
