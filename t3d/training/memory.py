"""How much memory the activations of a training pass take, traced without weights or a device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from t3d.models.block_diffusion import BlockDiffusionConfig
from t3d.models.families import family_of
from t3d.objectives.base import CHUNK_LOGITS

_KEEPING = "t3d_kept_shapes"


class _Keep(torch.autograd.Function):
    """What FlexAttention keeps for its backward pass, without the arithmetic."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, normalizer = torch.empty_like(query), query.new_empty(query.shape[:-1]).float()
        ctx.save_for_backward(query, key, value, out, normalizer)
        return out


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> tuple[Any, None]:
    query, key = query.to(value.dtype), key.to(value.dtype)
    out: Any = _Keep.apply(query, key, value)
    return out.transpose(1, 2).contiguous(), None


def activation_bytes(
    config: BlockDiffusionConfig,
    *,
    rows: int,
    width: int,
    loss_tokens: int,
    dtype: torch.dtype,
    flex: bool,
    checkpointing: bool,
) -> int:
    """Largest memory of the student's activations, logits included, in a forward and backward pass.

    Traced are the tensors that autograd keeps in one layer and in two. The backward pass is taken
    to need the larger of a quarter of a layer and one chunk of logits on top. On a CPU the
    estimate is within 20 % of what is measured.

    Args:
        config: the model's shape.
        rows: packed rows.
        width: columns of a row.
        loss_tokens: columns whose logits are computed.
        dtype: number format of the arithmetic; weights are float32.
        flex: whether attention is FlexAttention; else sdpa, whose mask has a byte a pair.
        checkpointing: whether a layer's activations are computed again in the backward pass.

    Raises:
        ValueError: for a mixture of experts, whose layers keep what the router decides.
    """
    if config.model_type == "sdar_moe":
        raise ValueError("what a mixture of experts keeps depends on its router")
    one, two = (_kept(config, number, rows, width, dtype, flex) for number in (1, 2))
    layer, layers = two - one, config.num_hidden_layers
    hidden = 4 * rows * width * config.hidden_size
    kept = one + (layers * hidden if checkpointing else (layers - 1) * layer)
    # Selected hidden states and their gradient; logits of a chunk in the arithmetic's format, in
    # float32 and once more as its gradient, and the gradient of the head.
    selected = 2 * dtype.itemsize * loss_tokens * config.hidden_size
    chunk = min(CHUNK_LOGITS, loss_tokens * config.vocab_size) * (8 + dtype.itemsize)
    head = dtype.itemsize * config.vocab_size * config.hidden_size
    return kept + selected + max(chunk + head, layer // 4)


def _kept(
    config: BlockDiffusionConfig,
    num_layers: int,
    rows: int,
    width: int,
    dtype: torch.dtype,
    flex: bool,
) -> int:
    """Bytes that a model's forward pass keeps for the backward pass, beside its weights."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.layer_types = num_layers, ["full_attention"] * num_layers
    ALL_ATTENTION_FUNCTIONS.register(_KEEPING, _attend)
    kept: dict[int, int] = {}
    with FakeTensorMode():
        model = family_of(config.model_type).model_class._from_config(
            small, dtype=torch.float32, attn_implementation=_KEEPING if flex else "sdpa"
        )
        known = {weight.untyped_storage()._cdata for weight in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
            return tensor

        # Storages are told apart by their addresses, so that none may be freed.
        alive: list[Tensor] = []
        ids = torch.zeros(rows, width, dtype=torch.int64)
        mask = torch.ones(rows, 1, 1 if flex else width, width, dtype=torch.bool)
        lower = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        with saved_tensors_hooks(keep, lambda tensor: tensor), lower:
            model(ids, mask, ids, with_head=False)
    return sum(kept.values())
