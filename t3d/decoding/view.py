"""The decoder's view of a model: a shallow copy that shares parameters and swaps modules.

Attention writes into the slots of the cache and reads from them, the last layer goes on with the
tokens whose logits are wanted, and rotary embedding, norms and activation take fewer operations
than the library's. Large linear layers on a CPU are packed ones.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import SiLUActivation

from t3d.decoding.attention import Attend
from t3d.decoding.cache import SlotCache
from t3d.decoding.packing import PackedLinear, packable
from t3d.models.block_diffusion import BlockDiffusionLM


class Wanted(NamedTuple):
    """The tokens of a pass whose logits are wanted."""

    tokens: Tensor
    """Their numbers, int64 [M]."""
    stop: int
    """Number of leading tokens that include all of them; attention of the last layer is computed
    for these alone."""


class SlotAttention(nn.Module):
    """An attention layer of the library, over the slots of a cache.

    In shapes: N tokens of the pass, M wanted ones, D head size.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    head_dim: int
    layer_idx: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        slots: SlotCache,
        attend: Attend,
        only: Wanted | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """The output [1, N, hidden_size], and None in place of attention weights.

        Args:
            hidden_states: [1, N, hidden_size].
            position_embeddings: what `SignedRotary` returns.
            slots: cache in which the tokens have their places.
            attend: attention of this pass.
            only: the tokens that the output is limited to, [1, M, hidden_size], which the last
                layer gives; by default all. `wanted`, which every layer gets, is ignored here.
        """
        size, tokens = self.head_dim, hidden_states[0]
        query, key, value = (
            project(tokens).unflatten(-1, (-1, size))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if "q_norm" in self._modules:
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = position_embeddings
        states, heads = torch.cat([query, key, value], 1), query.shape[1]
        rotated = states[:, : heads + key.shape[1]]
        turned = rotated.roll(size // 2, -1)
        rotated.mul_(cos).addcmul_(turned, sin)
        query, stored = states[:, :heads], states[:, heads:].unflatten(1, (2, -1))
        keys, values = slots.write(stored, self.layer_idx)
        if only is None:
            mixed = attend(query, keys, values, self.scaling)
        else:
            mixed = attend(query[: only.stop], keys, values, self.scaling)[only.tokens]
        return self.o_proj(mixed.flatten(1))[None], None


class LastLayer(nn.Module):
    """The last decoder layer of the library, with output only where it is wanted.

    Of all other tokens, nothing but their keys and values is ever read.
    """

    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def forward(self, hidden_states: Tensor, *_: Any, wanted: Wanted, **options: Any) -> Tensor:
        """The output [1, M, hidden_size] of the M wanted tokens, from [1, N, hidden_size]."""
        mixed, _ = self.self_attn(self.input_layernorm(hidden_states), only=wanted, **options)
        mixed = hidden_states[:, wanted.tokens] + mixed
        return mixed + self.mlp(self.post_attention_layernorm(mixed))


class SignedRotary(nn.Module):
    """The library's rotary embedding, with the signs of the rotation in the sines.

    Args:
        rotary: the library's.
    """

    table: Tensor | None = None
    """What `turns` returns for positions 0, 1, ..., if that depends on nothing else."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """Cosines and sines [N, 1, D]: a vector x turns into x * cos + roll(x, D / 2) * sin."""
        if self.table is not None:
            return self.table.index_select(0, position_ids[0]).unbind(1)
        return self.turns(states, position_ids).unbind(1)

    def turns(self, states: Tensor, position_ids: Tensor) -> Tensor:
        """Cosines and sines of positions [1, N], [N, 2, 1, D]; only the dtype of states matters."""
        cos, sin = self.rotary(states, position_ids)
        left, right = sin.chunk(2, -1)
        return torch.stack([cos, torch.cat([-left, right], -1)], 2)[0, :, :, None]


class FusedNorm(nn.Module):
    """A norm of the library's, on a GPU in one operation."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        size, epsilon = hidden_states.shape[-1], self.variance_epsilon
        if hidden_states.device.type == "cuda" or hidden_states.dtype != torch.float32:
            return F.rms_norm(hidden_states, (size,), self.weight, epsilon)
        # A CPU has no kernel for it, and these read the states once less than rms_norm's parts.
        norm = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True)
        return (hidden_states * (norm.square_() / size + epsilon).rsqrt_()).mul_(self.weight)


class ViewMaker:
    """Makes views of one model, and keeps their packed weights, which are costly to make."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        self._model = model
        self._packed: dict[nn.Module, PackedLinear] = {
            layer: PackedLinear.of(layer) for layer in packable(model)
        }

    def __call__(self, num_positions: int) -> BlockDiffusionLM:
        """A view in evaluation mode; its forward pass takes `slots`, `attend` and `wanted`, and
        returns logits [1, M, V] of the M wanted tokens, at positions below `num_positions`.

        It shares the model's parameters, so later changes of these show in the view as well.
        """
        view = self._view(self._model)
        assert isinstance(view, BlockDiffusionLM)
        layers, rotary = view.base_model.layers, view.base_model.rotary_emb
        assert isinstance(layers, nn.ModuleList)
        assert isinstance(rotary, SignedRotary)
        if view.config.has_fixed_rotation:
            states = torch.empty(0, dtype=view.dtype, device=view.device)
            positions = torch.arange(num_positions, device=view.device)
            rotary.table = rotary.turns(states, positions[None])
        _turned(layers[-1], LastLayer)
        return view.eval()

    def _view(self, module: nn.Module) -> nn.Module:
        if module in self._packed:
            return self._packed[module]
        if type(module) is SiLUActivation:
            return nn.SiLU(inplace=True)
        out = copy.copy(module)
        out._modules = {
            name: None if child is None else self._view(child)
            for name, child in module._modules.items()
        }
        # By their parts, as every family on the library's classes has them.
        if "inv_freq" in out._buffers:
            return SignedRotary(out)
        if {"q_proj", "k_proj", "v_proj", "o_proj"} <= out._modules.keys():
            return _turned(out, SlotAttention)
        # In float64 the library's norms compute in float32, and the model is what they make it.
        if "variance_epsilon" in out.__dict__ and self._model.dtype != torch.float64:
            return _turned(out, FusedNorm)
        return out


def _turned(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The module with the forward pass of another class."""
    module.__class__ = kind
    return module
