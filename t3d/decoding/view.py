"""The decoder's view of a model: a shallow copy that shares parameters and swaps layers.

Attention runs by `t3d.decoding.attention`, and large linear layers on a CPU are packed ones.
"""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t3d.decoding.attention import attend
from t3d.decoding.packing import PackedLinear, packable
from t3d.models.block_diffusion import BlockDiffusionLM

ATTENTION = "t3d_groups"
"""Name under which transformers finds the attention function `attend`."""


class ViewMaker:
    """Makes views of one model, and keeps their packed weights, which are costly to make."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        self._model = model
        self._packed: dict[nn.Module, PackedLinear] = {
            layer: PackedLinear.of(layer) for layer in packable(model)
        }

    def __call__(self) -> BlockDiffusionLM:
        """A view in evaluation mode, in which `attend` computes the attention.

        It shares the model's parameters, so later changes of these show in the view as well.
        """
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
        view = self._view(self._model)
        assert isinstance(view, BlockDiffusionLM)
        return view.eval()

    def _view(self, module: nn.Module) -> nn.Module:
        if module in self._packed:
            return self._packed[module]
        out = copy.copy(module)
        out._modules = {
            name: None if child is None else self._view(child)
            for name, child in module._modules.items()
        }
        config = out.__dict__.get("config")
        if isinstance(config, PreTrainedConfig):
            own = copy.copy(config)
            own._attn_implementation = ATTENTION
            out.__dict__["config"] = own
        return out
