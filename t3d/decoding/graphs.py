"""Forward passes of few shapes, which CUDA graphs hold: no launch of theirs waits for the host.

A pass is padded with copies of its last block, which write the same keys to the same slots, and
its logits with those of any of its tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t3d.models.block_diffusion import BlockDiffusionConfig

Shape = tuple[int, int, int, int]
"""Blocks of a pass, tokens, positions whose logits are wanted, and tokens of the largest block."""
Forward = Callable[[Tensor, Shape], Tensor]
"""Function of the numbers of a pass, int64, and its shape; returns logits."""
SEEN_BEFORE = 2
"""Number of passes of a shape that run without a graph, since making one takes several passes."""


def padded(num: int) -> int:
    """The next number that passes are padded to: four to each power of two."""
    step = max(1 << (num - 1).bit_length() >> 3, 1)
    return -(-num // step) * step


def can_capture(config: BlockDiffusionConfig) -> bool:
    """Whether a model's passes never wait for the device.

    A mixture of experts counts its tokens, and some rotary embeddings look for the last position.
    """
    return config.model_type != "sdar_moe" and config.has_fixed_rotation


@dataclass
class Held:
    """A shape's buffers: a replay reads the numbers and writes the logits."""

    numbers: Tensor
    logits: Tensor
    replay: Callable[[], Any]


class StaticPasses:
    """Runs passes by their shape, from buffers that keep their addresses.

    Args:
        forward: the pass.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._seen = Counter[Shape]()
        self._held: dict[Shape, Held] = {}
        self._pool: Any = None

    def __call__(self, numbers: Tensor, shape: Shape) -> Tensor:
        """Logits; they stay until the next call."""
        self._seen[shape] += 1
        if self._seen[shape] <= SEEN_BEFORE:
            return self._forward(numbers, shape)
        if shape not in self._held:
            self._held[shape] = self._hold(numbers.clone(), shape)
        held = self._held[shape]
        held.numbers.copy_(numbers)
        held.replay()
        return held.logits

    def _hold(self, numbers: Tensor, shape: Shape) -> Held:
        if numbers.device.type != "cuda":
            # As a graph would do it, for tests: the same buffers every time.
            logits = self._forward(numbers, shape)
            return Held(numbers, logits, lambda: logits.copy_(self._forward(numbers, shape)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(numbers, shape)
        self._pool = graph.pool()
        return Held(numbers, logits, graph.replay)
