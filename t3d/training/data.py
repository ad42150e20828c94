"""The order in which training sequences are visited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from t3d.rng import derive_key


class LengthGroupedSampler(Sampler[int]):
    """A random order in which the sequences of a batch have similar lengths.

    Batches are cut from windows of `window` shuffled batches sorted by length, and come in
    random order. The order is a function of (seed, epoch), so a resumed run continues it.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int, window: int = 16
    ) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.window = window
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_key(self.seed, "order", self.epoch))
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        whole = len(shuffled) - len(shuffled) % self.batch_size
        batches: list[torch.Tensor] = []
        for window in shuffled[:whole].split(self.window * self.batch_size):
            by_length = window[self.lengths[window].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[number].tolist()
        # The incomplete last batch; the trainer drops it.
        yield from shuffled[whole:].tolist()
