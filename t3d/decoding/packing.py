"""Linear layers on a CPU with a cached copy of their weights, packed as oneDNN needs them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

FEW_ROWS = 8
"""Number of rows (tokens) that the weights are packed for: two blocks of four. Products with more
rows are no slower than without packing."""
MANY_WEIGHTS = 2**18
"""Smallest number of weights of a layer that is packed; below it the call costs more than packing
saves, as measured."""


class PackedLinear(nn.Linear):
    """`nn.Linear` with a cached, oneDNN-packed copy of its weights.

    A product with few rows, as in small batches, takes half the time; with many rows it takes no
    more time than without.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> PackedLinear:
        """A layer that shares the parameters of `linear`; it packs them again when they change."""
        out = copy.copy(linear)
        out.__class__ = cls
        assert isinstance(out, cls)
        out._packed_from = (0, 0)
        return out

    def forward(self, input: Tensor) -> Tensor:
        """The result of `nn.Linear`, up to rounding."""
        current = (self.weight.data_ptr(), self.weight._version)
        if current != self._packed_from:
            weight = self.weight.detach()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, FEW_ROWS)
            self._packed_from = current
        return torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")


def packable(model: nn.Module) -> list[nn.Linear]:
    """The large float32 layers on a CPU; none if they fill a quarter of its memory."""
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and layer.weight.numel() >= MANY_WEIGHTS
        # Tensors made in inference mode have no version by which a change could be noticed.
        and not layer.weight.is_inference()
    ]
    if not layers or not torch.backends.mkldnn.is_available():
        return []
    import psutil

    few = 4 * packed_bytes(layers) < psutil.virtual_memory().total
    return layers if few else []


def packed_bytes(layers: list[nn.Linear]) -> int:
    """Bytes that the packed copies take."""
    return sum(layer.weight.nbytes for layer in layers)
