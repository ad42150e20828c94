"""Decoding settings: every wrong value is a clear error."""

from __future__ import annotations

from typing import Any

import pytest

from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Completion, Passes, Request


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 0},
        {"denoising_steps": 0},
        {"denoising_steps": 5},
        {"remasking": "high_confidence"},
        {"confidence_threshold": 1.5},
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0.0},
        {"max_new_tokens": 0},
        {"window": 0},
        {"window": 3},
        {"denoising_steps": 3, "window": 2},
        {"denoising_steps": 0, "remasking": "ancestral"},
        {"random_share": 1.1},
        {"entropy_bound": -0.5},
    ],
)
def test_a_wrong_value_names_its_key(wrong: dict[str, Any]) -> None:
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"^{name} must .*got ({name}=)?{value!r}"):
        DecodingConfig(**wrong)


def test_full_steps_are_those_of_the_window() -> None:
    config = DecodingConfig(block_size=160, denoising_steps=32, window=32)
    assert config.window_size == 32
    assert DecodingConfig(block_size=160, denoising_steps=160).window_size == 160
    # Steps that commit nothing are the reverse process's own.
    assert DecodingConfig(denoising_steps=99, remasking="ancestral").denoising_steps == 99


def test_passes_and_token_ids() -> None:
    passes = Passes(prefill=1, denoising=7, commit=2)
    assert passes.total == 10
    completion = Completion([5, 6, 7, 8], [0, 1, 2, 3], [0.0] * 4, 3, "stop", passes)
    assert completion.token_ids == [5, 6, 7]


def test_settings_of_a_request_replace_those_of_the_decoder() -> None:
    default, own = DecodingConfig(max_new_tokens=7), DecodingConfig(block_size=8, max_new_tokens=5)
    assert Request([1]).settings(default) is default
    assert Request([1], config=own).settings(default) is own
    lengths = [
        Request([1], max_new_tokens=n, config=c).num_new(default)
        for n, c in ((None, None), (None, own), (3, None), (3, own))
    ]
    assert lengths == [7, 5, 3, 3]
