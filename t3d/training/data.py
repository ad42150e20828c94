"""The order in which training sequences are visited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from t3d.rng import derive_key


class LengthGroupedSampler(Sampler[int]):
    """A random order of whole batches, in which the sequences of a batch have similar lengths.

    A batch is that of an optimizer step, whatever it is accumulated from. Batches are cut
    from windows of `window` shuffled batches sorted by length, and come in random order. The
    order is a function of (seed, epoch), so a resumed run continues it. Sequences that fill
    no batch wait for another epoch.
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

    @property
    def num_batches(self) -> int:
        return len(self.lengths) // self.batch_size

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_key(self.seed, "order", self.epoch))
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        batches: list[torch.Tensor] = []
        for window in shuffled[: len(self)].split(self.window * self.batch_size):
            by_length = window[self.lengths[window].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[number].tolist()
