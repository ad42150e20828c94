"""Copies between host and device: a decoding pass takes one in either direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def send(device: torch.device, columns: Sequence[Tensor | Sequence[int]]) -> list[Tensor]:
    """Columns of 64-bit numbers, int64 or float64, as tensors that reach the device in one copy.

    Returns:
        int64 tensors of the columns' lengths; `view(torch.float64)` gives a float64 one back.
    """
    whole = [
        column.view(torch.int64) if isinstance(column, Tensor) else torch.tensor(column).long()
        for column in columns
    ]
    copied = torch.cat(whole).to(device, non_blocking=True)
    return list(copied.split([len(column) for column in whole]))


def fetch(values: Tensor) -> list[list[float]]:
    """The numbers of a tensor [A, B]; waits until the device has computed them."""
    return values.tolist()
