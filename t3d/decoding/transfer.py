"""Copies between host and device: a decoding pass takes one in either direction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor


def send(device: torch.device, lists: Sequence[Sequence[int]]) -> list[Tensor]:
    """The lists as int64 tensors, which go to the device in one copy."""
    whole = torch.tensor(list(chain(*lists)), dtype=torch.int64)
    return list(whole.to(device, non_blocking=True).split([len(own) for own in lists]))


def fetch(values: Tensor) -> list[list[float]]:
    """The numbers of a tensor [A, B]; waits until the device has computed them."""
    return values.tolist()
