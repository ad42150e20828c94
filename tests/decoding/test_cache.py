"""SlotCache: what is written where, and what a pass sees."""

from __future__ import annotations

import pytest
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
    cache.place(torch.tensor([[2], [0]]), position)
    new_keys, new_values = states(2, 2, 0), states(2, 2, 1)
    keys, values = cache.update(new_keys, new_values, 1)
    assert keys.data_ptr() == cache.states[1].data_ptr()
    assert torch.equal(keys[2, :, 4:6], new_keys[0])
    assert torch.equal(keys[0, :, 0:2], new_keys[1])
    assert torch.equal(values[2, :, 4:6], new_values[0])
    # Nothing else changed: neither other slots, nor the idle row, nor the other layer.
    assert int(cache.states[1].count_nonzero()) == 2 * new_keys.numel()
    assert int(cache.states[0].count_nonzero()) == 0


def test_writing_again_replaces() -> None:
    cache = make_cache()
    position = torch.tensor([[2, 3]])
    for seed in (0, 1):
        cache.place(torch.zeros_like(position), position)
        keys, _ = cache.update(states(1, 2, seed), states(1, 2, seed), 0)
    assert torch.equal(keys[0, :, 2:4], states(1, 2, 1)[0])


def test_sequences_of_many_lengths_lie_end_to_end() -> None:
    cache = make_cache()
    row, position = torch.tensor([[2, 2, 0, 0, 0]]), torch.tensor([[2, 3, 0, 1, 2]])
    cache.place(row, position)
    new = states(1, 5, 0)
    keys, values = cache.update(new, states(1, 5, 1), 0)
    assert torch.equal(keys[2, :, 2:4], new[0, :, :2])
    assert torch.equal(keys[0, :, :3], new[0, :, 2:])
    assert torch.equal(values[0, :, :3], states(1, 5, 1)[0, :, 2:])
    assert int(cache.states[0].count_nonzero()) == 2 * 5 * 3 * 4


@pytest.mark.parametrize("shape", [(5, 12), (2, 12), (5, 4), (2, 4)])
def test_resizing_keeps_what_fits(shape: tuple[int, int]) -> None:
    cache = make_cache()
    position = torch.arange(8).expand(3, 8)
    cache.place(torch.arange(3)[:, None], position)
    for layer in (0, 1):
        cache.update(states(3, 8, layer), states(3, 8, layer + 2), layer)
    cache.resize(*shape)
    rows, slots = min(3, shape[0]), min(8, shape[1])
    for layer in (0, 1):
        for tensor, seed in zip(cache.states[layer].unbind(2), (layer, layer + 2), strict=True):
            assert tensor.shape == (shape[0], shape[1], 3, 4)
            kept = states(3, 8, seed).transpose(1, 2)[:rows, :slots]
            assert torch.equal(tensor[:rows, :slots], kept)
            assert int(tensor.count_nonzero()) == rows * slots * 12


def test_moving_copies_a_row_in_every_layer() -> None:
    cache = make_cache()
    cache.place(torch.arange(3)[:, None], torch.arange(8))
    for layer in (0, 1):
        cache.update(states(3, 8, layer), states(3, 8, layer + 2), layer)
    cache.move(2, 0)
    for layer in (0, 1):
        for tensor, seed in zip(cache.states[layer].unbind(2), (layer, layer + 2), strict=True):
            assert torch.equal(tensor, states(3, 8, seed).transpose(1, 2)[[2, 1, 2]])
