"""Copies between host and device: a decoding pass takes one in either direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Column = Sequence[int] | NDArray[np.int64] | NDArray[np.float64]
"""Numbers of 64 bits on the host."""


def send(device: torch.device, columns: Sequence[Column]) -> list[Tensor]:
    """Columns as int64 tensors, which reach the device in one copy.

    Those of a float64 column have its bits: `view(torch.float64)` gives the numbers back.
    """
    # numpy, because its small operations on the host cost less than torch's.
    whole = [
        own.view(np.int64) if isinstance(own, np.ndarray) else np.array(own, dtype=np.int64)
        for own in columns
    ]
    copied = torch.tensor(np.concatenate(whole)).to(device, non_blocking=True)
    return list(copied.split([len(own) for own in whole]))


def fetch(values: Tensor) -> list[list[float]]:
    """The numbers of a tensor [A, B]; waits until the device has computed them."""
    return values.tolist()
