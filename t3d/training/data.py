"""The order in which training sequences are visited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from t3d.core.rng import derive_key


class SortedBatchSampler(Sampler[int]):
    """Random batches of an optimizer step, each in order of length.

    Micro-batches then need little padding, while each optimizer step sees all lengths. If a step
    saw sequences of one length only, the student would forget the long problems after steps on
    short ones. The order is a function of (seed, epoch), so a resumed run continues it. The
    sequences that are left after the last whole batch are skipped in that epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def num_batches(self) -> int:
        return len(self.lengths) // self.batch_size

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_key(self.seed, "order", self.epoch))
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        batches = shuffled[: len(self)].view(-1, self.batch_size)
        order = self.lengths[batches].argsort(dim=1, stable=True)
        yield from batches.gather(1, order).flatten().tolist()
