from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from t3d.core.rng import derive_key, fold, uniform

KEYS = st.integers(0, 2**63 - 1)
WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(value: int) -> int:
    """The finaliser in unbounded integers, as a 64-bit unsigned number."""
    value %= WORD
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WORD
    return value ^ (value >> 31)


def key_tensor(*keys: int) -> Tensor:
    return torch.tensor(keys, dtype=torch.int64)


def test_uniform_agrees_with_the_published_splitmix64_sequence():
    """The reference implementation's first numbers after seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = [1234567 + i * GOLDEN for i in range(3)]
    signed = [(state + WORD // 2) % WORD - WORD // 2 for state in states]
    expected = [(number >> 11) * 2.0**-53 for number in published]
    assert uniform(key_tensor(*signed)).tolist() == expected


@given(KEYS, st.lists(KEYS, min_size=1, max_size=3))
def test_fold_agrees_with_unbounded_integers(key: int, parts: list[int]):
    expected = key
    for part in parts:
        expected = splitmix(expected * GOLDEN + splitmix(part + GOLDEN))
    assert fold(key_tensor(key), *parts).item() % WORD == expected


@given(KEYS, KEYS, KEYS)
def test_fold_goes_part_by_part_and_heeds_their_order(key: int, one: int, two: int):
    keys = key_tensor(key)
    assert torch.equal(fold(keys, one, two), fold(fold(keys, one), two))
    assert torch.equal(fold(keys, one, two), fold(keys, two, one)) == (one == two)
    assert torch.equal(fold(keys), keys)


@given(st.lists(KEYS, min_size=1, max_size=8), st.lists(KEYS, min_size=1, max_size=8))
def test_a_value_depends_on_its_own_key_and_part_alone(keys: list[int], parts: list[int]):
    table = fold(key_tensor(*keys)[:, None], key_tensor(*parts))
    assert table.shape == (len(keys), len(parts))
    values = uniform(table)
    for i, key in enumerate(keys):
        for j, part in enumerate(parts):
            alone = fold(key_tensor(key), part)
            assert alone.item() == table[i, j]
            assert uniform(alone).item() == values[i, j]


def test_neither_the_global_generator_nor_the_arguments_matter_or_change():
    keys = torch.arange(4)
    state = torch.get_rng_state()
    first = uniform(fold(keys, 3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(uniform(fold(keys, 3)), first)
    assert torch.equal(keys, torch.arange(4))


@given(KEYS)
def test_uniform_is_uniform_and_neighbours_are_independent(key: int):
    """Deterministic keys, and bounds that a fair generator misses once in about 10^6 times."""
    n, bins = 1 << 14, 16
    values = uniform(fold(key_tensor(key), torch.arange(n)))
    assert values.dtype == torch.float64
    assert 0 <= values.min() < values.max() < 1
    chi_square = ((values.histc(bins, 0, 1) - n / bins) ** 2).sum() / (n / bins)
    assert chi_square < 60  # 15 degrees of freedom
    centred = values - 0.5
    correlation = (centred[1:] * centred[:-1]).mean() * 12
    assert abs(correlation) < 5 / n**0.5


def test_no_two_streams_collide():
    table = fold(torch.arange(64)[:, None, None], torch.arange(64)[:, None], torch.arange(16))
    assert table.unique().numel() == 64 * 64 * 16


def test_derived_keys_never_change():
    """Stores and results name their seeds: a new derivation would orphan them all."""
    assert derive_key(0) == 4761921975702974394
    assert derive_key(7, "mini_gsm", 3) == 3322512461434493850


@given(st.lists(st.tuples(st.integers(), st.text("ab", min_size=1), KEYS), min_size=2, unique=True))
def test_derived_keys_are_63_bit_and_differ(parts: list[tuple[int, str, int]]):
    keys = [derive_key(seed, name, number) for seed, name, number in parts]
    assert all(0 <= key < 2**63 for key in keys)
    assert len(set(keys)) == len(keys)


def test_derived_keys_heed_the_order_and_the_borders_of_their_parts():
    assert derive_key(0, "a", "b") != derive_key(0, "b", "a")
    assert derive_key(0, "ab", "c") != derive_key(0, "a", "bc")
    assert derive_key(1, 23) != derive_key(12, 3)
