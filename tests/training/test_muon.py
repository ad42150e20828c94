"""Muon is torch's for the matrices of the layers, and torch's AdamW for everything else."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from t3d.training.arguments import training_arguments
from t3d.training.config import TrainingConfig
from t3d.training.muon import REST_RATE, Muon, muon


def gradients(weights: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def make(weights: list[nn.Parameter]) -> Muon:
    return Muon(
        weights[:2],
        weights[2:],
        learning_rate=0.1,
        weight_decay=0.2,
        betas=(0.9, 0.98),
        eps=1e-8,
    )


@pytest.fixture
def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    shapes = [(6, 4), (4, 8), (5, 4), (4,)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_each_part_steps_as_by_itself(weights: list[nn.Parameter]):
    alone = copy.deepcopy(weights)
    ours = make(weights)
    parts = [
        torch.optim.Muon(alone[:2], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            alone[2:], lr=0.1 * REST_RATE, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-8
        ),
    ]
    for step in range(5):
        for group in [*ours.param_groups, *(g for part in parts for g in part.param_groups)]:
            # What a schedule does.
            group["lr"] *= 0.9
        gradients(weights, step)
        gradients(alone, step)
        ours.step()
        for part in parts:
            part.step()
        assert all(torch.equal(a, b) for a, b in zip(weights, alone, strict=True))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_loaded_state_goes_on_alike(weights: list[nn.Parameter], steps: int):
    ours = make(weights)
    for step in range(steps):
        gradients(weights, step)
        ours.step()
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    copied = copy.deepcopy(weights)
    again = make(copied)
    again.load_state_dict(torch.load(file, weights_only=True))
    for step in range(steps, steps + 2):
        gradients(weights, step)
        gradients(copied, step)
        ours.step()
        again.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, copied, strict=True))


def test_every_weight_is_trained_and_those_of_the_vocabulary_by_adamw(bench: Any, tmp_path: Path):
    model = bench.model().model
    arguments = training_arguments(
        TrainingConfig(optimizer="muon", learning_rate=0.5, weight_decay=0.25), tmp_path
    )
    matrices, rest = muon(model, arguments).param_groups
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = [{names[id(weight)] for weight in group["params"]} for group in (matrices, rest)]
    assert found[0] | found[1] == set(names.values())
    assert not found[0] & found[1]
    assert all("layers." in name and "norm" not in name for name in found[0])
    assert all("embed" in name or "lm_head" in name or "norm" in name for name in found[1])
    assert (matrices["lr"], matrices["weight_decay"]) == (0.5, 0.25)
    assert (rest["lr"], rest["weight_decay"]) == (0.5 * REST_RATE, 0.0)
