"""Memory budget: how many tokens of keys and values fit into a share of the device's memory."""

from __future__ import annotations

import torch

from t3d.decoding import sampling
from t3d.decoding.config import DecodingConfig
from t3d.decoding.packing import packable, packed_bytes
from t3d.models.block_diffusion import BlockDiffusionLM

GPU_SHARE = 0.9
"""Share of a GPU's memory that may be taken by default."""


def cache_bytes_per_token(model: BlockDiffusionLM) -> int:
    """Bytes of one token's keys and values in all layers."""
    config = model.config
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return values * model.dtype.itemsize


def pass_bytes(
    model: BlockDiffusionLM, config: DecodingConfig, batch_size: int, prefill_chunk: int
) -> int:
    """Upper bound of the bytes that a pass takes beside weights and cache.

    A pass has the tokens of a prefill chunk, and of each sequence the finished block and every
    state, with drafts the next block's first, too. Counted are the hidden states of each token in
    one layer, the logits of each masked position twice, since those of one setting are copied, and
    what sampling takes for the logits that it works on at once: 16 bytes each, and 48 where it
    sorts them.
    """
    shape = model.config
    heads = shape.num_attention_heads * shape.head_dim
    num = config.most_states + (config.most_states > 1)
    tokens = prefill_chunk + (num + 1) * config.block_size * batch_size
    states = 4 * shape.hidden_size + 3 * shape.intermediate_size + 4 * heads
    logits = num * config.window_size * batch_size * shape.vocab_size
    sorts = config.temperature > 0 and (config.top_k > 0 or config.top_p < 1)
    at_once = min(logits, max(sampling.LOGITS_AT_ONCE, shape.vocab_size))
    held = (tokens * states + 2 * logits) * model.dtype.itemsize
    return held + (48 if sorts else 16) * at_once


def cache_tokens(per_token: int, num_layers: int, *, total: int, held: int, reserved: int) -> int:
    """Number of tokens of a cache with which everything together takes at most `total` bytes.

    A tenth of what is left stays free, since allocators round up and leave gaps.

    Args:
        per_token: bytes of a token's keys and values.
        num_layers: number of layers. Two more are counted: one layer is copied while a pass reads
            it, and another while the cache grows.
        total: bytes that may be taken.
        held: bytes that are taken already, by the weights and others.
        reserved: bytes that a pass takes.
    """
    left = total - held - reserved
    return max(0, 9 * left // 10 * num_layers // (per_token * (num_layers + 2)))


def fitting_cache(
    model: BlockDiffusionLM,
    config: DecodingConfig,
    *,
    memory_share: float,
    batch_size: int,
    prefill_chunk: int,
) -> int:
    """The argument `cache_tokens` of `BlockDecoder` for a share of the device's memory.

    Args:
        memory_share: share of the device's whole memory that weights, cache and passes may take
            together.

    Raises:
        ValueError: for a share outside (0, 1], or one that leaves no room for a block.
    """
    if not 0 < memory_share <= 1:
        raise ValueError(f"memory_share must lie in (0, 1], got {memory_share}")
    device_bytes, held = device_memory(model.device)
    held += packed_bytes(packable(model))
    total = int(memory_share * device_bytes)
    reserved = pass_bytes(model, config, batch_size, prefill_chunk)
    # A model that drafts has a cache of its own, as large as this one where it is a student.
    per_token = cache_bytes_per_token(model) * (1 if config.draft_model is None else 2)
    num_layers = model.config.num_hidden_layers
    tokens = cache_tokens(per_token, num_layers, total=total, held=held, reserved=reserved)
    if tokens < config.block_size:
        raise ValueError(
            f"memory_share={memory_share} of {_gib(device_bytes)} is {_gib(total)}; "
            f"{_gib(held)} are taken, a pass of {batch_size} sequences takes up to "
            f"{_gib(reserved)}, and nothing is left for keys and values: raise memory_share or "
            "lower batch_size"
        )
    return tokens


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the device, and how many of them are taken; on a CPU, those of this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return total, total - free - unused
    import psutil

    return psutil.virtual_memory().total, psutil.Process().memory_info().rss


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
