"""Settings told apart: by labels and file names, and by what has an effect."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.decoding.config import DYNAMIC, DecodingConfig, labels, one_line
from tests.row import decoding_configs

BASE = DecodingConfig(block_size=8, denoising_steps=2)
ENTROPY = replace(BASE, remasking="entropy_bounded")
OTHER = [
    (ENTROPY, replace(ENTROPY, entropy_bound=0.5)),
    (BASE, ENTROPY),
    *[
        (BASE, replace(BASE, **{field: value}))
        for field, value in {
            "block_size": 4,
            "denoising_steps": 4,
            "remasking": "sequential",
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "window": 4,
            "max_new_tokens": 64,
            "random_share": 0.25,
            "confidence": "tempered",
        }.items()
    ],
    (replace(BASE, remasking=DYNAMIC), replace(BASE, remasking=DYNAMIC, confidence_threshold=0.8)),
]
"""Two settings that decode differently."""
SAME = [
    (BASE, replace(BASE, confidence_threshold=0.5)),
    (BASE, replace(BASE, entropy_bound=2.0)),
    (BASE, replace(BASE, window=8)),
    (ENTROPY, replace(ENTROPY, denoising_steps=8)),
    (ENTROPY, replace(ENTROPY, confidence_threshold=0.5)),
    (ENTROPY, replace(ENTROPY, confidence="tempered")),
    (replace(BASE, temperature=0.0), replace(BASE, temperature=0.0, confidence="tempered")),
    (replace(BASE, temperature=0.0), replace(BASE, temperature=0.0, top_k=5)),
    (replace(BASE, temperature=0.0), replace(BASE, temperature=0.0, top_p=0.5)),
]
"""Two settings that decode alike."""


@pytest.mark.parametrize(("one", "other"), OTHER, ids=lambda setting: setting.name)
def test_settings_that_decode_differently_have_names_of_their_own(
    one: DecodingConfig, other: DecodingConfig
) -> None:
    assert one.effective != other.effective
    assert one.rank != other.rank
    assert one.name != other.name
    names = labels([one, other])
    assert list(names) == [one, other]
    assert len({one_line(name) for name in names.values()}) == 2


@pytest.mark.parametrize(("one", "other"), SAME, ids=lambda setting: setting.name)
def test_a_field_without_effect_makes_no_other_setting(
    one: DecodingConfig, other: DecodingConfig
) -> None:
    assert one != other
    assert one.effective == other.effective


@given(decoding_configs())
def test_what_is_effective_stays_so(setting: DecodingConfig) -> None:
    assert setting.effective.effective == setting.effective
    assert setting.full.full == setting.full
    assert setting.full.tokens_per_step == 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (DecodingConfig(), "1 token/step, 4 steps, full"),
        (DecodingConfig(denoising_steps=1), "4 tokens/step, 1 step"),
        (DecodingConfig(denoising_steps=3), "1.33 tokens/step, 3 steps"),
        (DecodingConfig(8, 2, window=4), "2 tokens/step, 2 steps"),
        (DecodingConfig(remasking="random"), "1 token/step, 4 steps, random, full"),
        (DecodingConfig(8, 2, DYNAMIC), "dynamic > 0.9, ≤ 2 steps"),
        # As many steps as its bound asks for.
        (DecodingConfig(8, 2, "entropy_bounded"), "entropy ≤ 0.1, ≤ 8 steps"),
    ],
)
def test_a_label_tells_the_speed_and_what_gives_it(setting: DecodingConfig, expected: str) -> None:
    assert one_line(setting.label) == expected


def test_what_is_told_elsewhere_is_in_no_label() -> None:
    settings = [DecodingConfig(), DecodingConfig(block_size=8, temperature=1.0, top_k=5)]
    told = [one_line(name) for name in labels(settings, beside=("block_size", "top_k")).values()]
    assert told == [
        "1 token/step, 4 steps, full, temperature 0.1",
        "2 tokens/step, 4 steps, temperature 1.0",
    ]


@given(st.integers(1, 12), st.integers(1, 5000))
def test_a_block_has_no_more_states_than_orders_of_committing_give(size: int, num: int) -> None:
    given = DecodingConfig(block_size=size, denoising_steps=size, draft_states=num)
    assert given.most_states == min(num, 2**size - 1)
    huge = DecodingConfig(block_size=10**12, draft_states=num)
    assert huge.most_states == num
