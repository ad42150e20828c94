"""SlotCache: what is written where, and what a pass sees."""

from __future__ import annotations

import torch
from torch import Tensor

from t3d.decoding.cache import SlotCache
from t3d.models import SDARConfig

CONFIG = SDARConfig(num_hidden_layers=2, num_key_value_heads=3, head_dim=4)


def make_cache() -> SlotCache:
    return SlotCache(CONFIG, 3, 8, dtype=torch.float64, device=torch.device("cpu"))


def states(num_rows: int, length: int, seed: int) -> Tensor:
    """[B, kv_heads, L, D]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, 3, length, 4, dtype=torch.float64, generator=generator)


def test_tokens_land_in_their_own_row_and_slot() -> None:
    cache = make_cache()
    position = torch.tensor([[4, 5], [0, 1]])
    cache.place([2, 0], position, 6)
    new_keys, new_values = states(2, 2, 0), states(2, 2, 1)
    keys, values = cache.update(new_keys, new_values, 1)
    assert keys.shape == values.shape == (2, 3, 6, 4)
    # The rows of the pass, in the order of the pass.
    assert torch.equal(keys[0, :, 4:6], new_keys[0])
    assert torch.equal(keys[1, :, 0:2], new_keys[1])
    assert torch.equal(values[0, :, 4:6], new_values[0])
    assert torch.equal(cache.keys[1][2, :, 4:6], new_keys[0])
    # Nothing else changed: neither other slots, nor the idle row, nor the other layer.
    assert int(cache.keys[1].count_nonzero()) == new_keys.numel()
    assert int(cache.keys[0].count_nonzero()) == 0


def test_writing_again_replaces() -> None:
    cache = make_cache()
    position = torch.tensor([[2, 3]])
    for seed in (0, 1):
        cache.place([0], position, 4)
        keys, _ = cache.update(states(1, 2, seed), states(1, 2, seed), 0)
    assert torch.equal(keys[0, :, 2:], states(1, 2, 1)[0])


def test_a_full_batch_is_read_in_place() -> None:
    cache = make_cache()
    cache.place([0, 1, 2], torch.zeros(3, 1, dtype=torch.int64), 1)
    keys, _ = cache.update(states(3, 1, 0), states(3, 1, 1), 0)
    assert keys.data_ptr() == cache.keys[0].data_ptr()
