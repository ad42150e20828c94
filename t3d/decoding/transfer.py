"""Copies between host and device: a decoding pass takes one in either direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    # Pinned, because for a large copy of other memory the host waits until the device is idle.
    numbers = torch.tensor(np.concatenate(whole), pin_memory=device.type == "cuda")
    copied = numbers.to(device, non_blocking=True)
    return list(copied.split([len(own) for own in whole]))


def fetch(values: Tensor) -> Callable[[], list[list[float]]]:
    """Start the copy of a tensor [A, B]; the function that it returns waits for the numbers."""
    # From CUDA, torch copies to pinned memory, for which the host does not wait.
    copied = values.to("cpu", non_blocking=True)
    if values.device.type != "cuda":
        return copied.tolist
    done = torch.cuda.current_stream(values.device).record_event()

    def read() -> list[list[float]]:
        done.synchronize()
        return copied.tolist()

    return read
