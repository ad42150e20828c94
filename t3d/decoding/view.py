"""A model as the decoder runs it: its parameters in modules of another making."""

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
    """Makes views of one model, and keeps what is costly about them."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        self._model = model
        self._packed: dict[nn.Module, PackedLinear] = {
            layer: PackedLinear.of(layer) for layer in packable(model)
        }

    def __call__(self) -> BlockDiffusionLM:
        """The model as it stands, in evaluation mode and with `attend` for its attention.

        Parameters are the model's own: what changes them later changes the view.
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
