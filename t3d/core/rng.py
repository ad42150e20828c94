"""Counter-based random numbers: a pure function of (key, stream, index).

A value depends on the sequence's own key and on nothing around it, so decoding and
noising give the same result for any batch size, padding, order or number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def derive_key(seed: int, *parts: int | str) -> int:
    """A non-negative 63-bit key, determined by a seed and any identifying parts."""
    text = "\x1f".join([str(seed), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; `>>` on int64 is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """The splitmix64 finaliser (Steele et al., 2014); int64 arithmetic wraps."""
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def fold(keys: Tensor, *parts: int | Tensor) -> Tensor:
    """New keys of the broadcast shape of `keys` and `parts`, all int64."""
    for part in parts:
        number = keys.new_full((), part) if isinstance(part, int) else part.to(keys.device)
        keys = _mix(keys * _GOLDEN + _mix(number + _GOLDEN))
    return keys


def uniform(keys: Tensor) -> Tensor:
    """One float64 in [0, 1) for each key, same shape."""
    return _shift_right(_mix(keys + _GOLDEN), 11).double() * 2.0**-53


def other_token(keys: Tensor, vocab_size: int, banned: Collection[int]) -> Tensor:
    """A token id for each key, uniform over the vocabulary without those banned; same shape."""
    allowed = keys.new_ones(vocab_size)
    allowed[list(banned)] = 0
    ids = allowed.nonzero()[:, 0]
    return ids[(uniform(keys) * len(ids)).long()]
