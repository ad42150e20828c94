"""Strategies: quota, order, ties, and never a visible position."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from t3d.decoding.config import DecodingConfig, Remasking
from t3d.decoding.remasking import STRATEGIES, Scores, reverse_rate, scheduled, static_quota

LEVELS = st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 0.9, 1.0])


def scores(
    confidence: list[float],
    masked: list[bool],
    quota: int,
    *,
    step: int = 0,
    uniforms: list[float] | None = None,
    entropy: list[float] | None = None,
    **config: Any,
) -> Scores:
    """One block; its first step's quota is `quota` unless the config says otherwise."""
    # The quota of a first step of K is S / K rounded up; an extra position makes it any number.
    size = len(confidence)
    steps = next(k for k in range(1, size + 1) if -(-size // k) <= quota)
    config = {"block_size": size, "denoising_steps": steps, "confidence_threshold": 0.6, **config}
    setting = DecodingConfig(**config)

    def spread(values: list[float], fill: float = -torch.inf) -> Tensor:
        known = [v if m else fill for v, m in zip(values, masked, strict=True)]
        return torch.tensor([known], dtype=torch.float64)

    return Scores(
        config=setting,
        confidence=spread(confidence),
        schedule=torch.tensor([scheduled(setting, step, sum(masked))], dtype=torch.float64),
        uniforms=lambda: spread(uniforms or confidence),
        entropy=lambda: spread(entropy or confidence, torch.inf),
    )


def positions(commit: Tensor) -> list[int]:
    return commit[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("block_size", "denoising_steps", "quotas"),
    [(4, 4, [1, 1, 1, 1]), (4, 1, [4]), (8, 3, [3, 3, 2]), (5, 4, [2, 1, 1, 1]), (1, 1, [1])],
)
def test_quota_by_hand(block_size: int, denoising_steps: int, quotas: list[int]) -> None:
    steps = range(denoising_steps)
    found = [static_quota(step, block_size, block_size, denoising_steps) for step in steps]
    assert found == quotas


@given(st.integers(1, 16).flatmap(lambda s: st.tuples(st.just(s), st.integers(1, s))))
def test_quotas_sum_to_the_block_and_never_grow(sizes: tuple[int, int]) -> None:
    block_size, steps = sizes
    quotas = [static_quota(step, block_size, block_size, steps) for step in range(steps)]
    assert sum(quotas) == block_size
    assert min(quotas) >= 1
    assert all(a >= b for a, b in pairwise(quotas))


def test_quota_is_capped_by_what_is_masked() -> None:
    assert [static_quota(0, num_masked, 4, 1) for num_masked in (0, 1, 3, 4)] == [0, 1, 3, 4]


def test_quota_is_that_of_the_window() -> None:
    config = DecodingConfig(16, 3, window=4)
    assert [scheduled(config, step, 4) for step in range(3)] == [2, 1, 1]


@given(st.integers(1, 64))
def test_the_reverse_process_commits_at_every_step_alike(num_steps: int) -> None:
    """The rate is MDLM's with alpha = 1 - t, and the commit step is uniform over 0..K-1."""
    waiting = 1.0
    for j in range(num_steps):
        rate = reverse_rate(j, num_steps)
        alpha_t, alpha_s = j / num_steps, (j + 1) / num_steps
        assert rate == pytest.approx((alpha_s - alpha_t) / (1 - alpha_t))
        assert waiting * rate == pytest.approx(1 / num_steps)
        waiting *= 1 - rate
    assert waiting == 0


def test_ancestral_commits_below_the_rate_whatever_the_quota() -> None:
    uniforms, masked = [0.0, 0.2, 0.5, 0.6, 0.3], [True, True, True, True, False]
    # Steps of a reverse process of 10: rates 1/10, 1/2 and 1.
    for step, expected in ((0, [0]), (8, [0, 1]), (9, [0, 1, 2, 3])):
        one = scores(
            [0.9] * 5,
            masked,
            1,
            step=step,
            uniforms=uniforms,
            remasking="ancestral",
            denoising_steps=10,
        )
        assert positions(STRATEGIES["ancestral"](one)) == expected


@given(
    name=st.sampled_from([n for n in STRATEGIES if n not in ("ancestral", "entropy_bounded")]),
    block=st.lists(st.tuples(LEVELS, st.booleans(), LEVELS), min_size=1, max_size=8),
    data=st.data(),
)
def test_every_strategy_equals_a_sort(
    name: Remasking, block: list[tuple[float, bool, float]], data: st.DataObject
) -> None:
    confidence, masked, uniforms = (list(column) for column in zip(*block, strict=True))
    # Even a quota beyond what is masked touches no visible position.
    steps = data.draw(st.integers(1, len(block)))
    quota = -(-len(block) // steps)
    one = scores(
        confidence, masked, 1, denoising_steps=steps, confidence_threshold=0.5, uniforms=uniforms
    )
    commit = positions(STRATEGIES[name](one))
    key = {"sequential": [0.0] * len(block), "random": uniforms}.get(name, confidence)
    hidden = [p for p in range(len(block)) if masked[p]]
    expected = set(sorted(hidden, key=lambda p: (-key[p], p))[:quota])
    if name == "low_confidence_dynamic":
        expected |= {p for p in hidden if confidence[p] > 0.5}
    assert commit == sorted(expected)


def bounded(entropy: list[float], masked: list[bool], bound: float) -> list[int]:
    one = scores([0.5] * len(masked), masked, 1, entropy=entropy, entropy_bound=bound)
    return positions(STRATEGIES["entropy_bounded"](one))


@given(
    # Eighths sum without rounding.
    block=st.lists(
        st.tuples(st.integers(0, 16).map(lambda n: n / 8), st.booleans()), min_size=1, max_size=8
    ),
    bound=st.integers(0, 40).map(lambda n: n / 8),
)
def test_entropy_bounded_takes_the_largest_set_under_the_bound(
    block: list[tuple[float, bool]], bound: float
) -> None:
    """Of all sets of masked positions whose sum without the largest is bounded, none is larger,
    and none so large has a smaller sum."""
    entropy, masked = (list(column) for column in zip(*block, strict=True))
    hidden = [p for p in range(len(block)) if masked[p]]
    chosen = bounded(entropy, masked, bound)
    assert set(chosen) <= set(hidden)
    sets = [
        subset
        for num in range(1, len(hidden) + 1)
        for subset in combinations(hidden, num)
        if sum(entropy[p] for p in subset) - max(entropy[p] for p in subset) <= bound
    ]
    if not hidden:
        assert chosen == []
        return
    assert tuple(chosen) in sets
    assert len(chosen) == max(map(len, sets))
    largest = [subset for subset in sets if len(subset) == len(chosen)]
    total = sum(entropy[p] for p in chosen)
    assert total == min(sum(entropy[p] for p in subset) for subset in largest)
    # Among equals the first.
    order = sorted(hidden, key=lambda p: (entropy[p], p))
    assert chosen == sorted(order[: len(chosen)])


def test_entropy_bounded_by_hand() -> None:
    entropy, masked = [0.5, 0.0, 0.25, 2.0, 0.0], [True, True, True, True, False]
    for bound, expected in (
        (0.0, [1, 2]),  # a certain position costs nothing, and the next one is the largest
        (0.25, [0, 1, 2]),
        (0.74, [0, 1, 2]),
        (0.75, [0, 1, 2, 3]),
    ):
        assert bounded(entropy, masked, bound) == expected
    assert bounded([3.0, 2.0], [True, True], 0.0) == [1]


@pytest.mark.parametrize("name", ["low_confidence_static", "random", "sequential"])
def test_ties_break_by_position(name: Remasking) -> None:
    # Long enough that an unstable sort would shuffle.
    masked = [True] * 64
    masked[1] = False
    one = scores([0.25] * 64, masked, 1, denoising_steps=22)
    assert one.schedule.tolist() == [3]
    assert positions(STRATEGIES[name](one)) == [0, 2, 3]


@pytest.mark.parametrize("name", STRATEGIES)
def test_logits_that_overflowed_are_no_reason_to_stay_masked(name: Remasking) -> None:
    nan = [float("nan")] * 4
    one = scores(nan, [False, True, False, True], 2, uniforms=[0.0] * 4, remasking=name)
    chosen = positions(STRATEGIES[name](one))
    # The sum of such entropies bounds nothing, so one alone commits.
    assert chosen == ([1] if name == "entropy_bounded" else [1, 3])


def test_zero_confidence_is_no_reason_to_stay_masked() -> None:
    commit = STRATEGIES["low_confidence_static"](scores([0.0, 0.9, 0.0], [True, False, True], 2))
    assert positions(commit) == [0, 2]


def test_dynamic_takes_all_above_the_threshold() -> None:
    dynamic = STRATEGIES["low_confidence_dynamic"]
    assert positions(dynamic(scores([0.7, 0.9, 0.1, 0.8], [True] * 4, 1))) == [0, 1, 3]
    assert positions(dynamic(scores([0.2, 0.3, 0.1, 0.3], [True] * 4, 1))) == [1]
    # At the threshold is not above it.
    assert positions(dynamic(scores([0.5, 0.5], [True] * 2, 1, confidence_threshold=0.5))) == [0]


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_rows_are_independent(name: Remasking) -> None:
    generator = torch.Generator().manual_seed(3)
    confidence = torch.rand(6, 5, generator=generator)
    masked = torch.rand(6, 5, generator=generator) < 0.7
    uniforms = torch.rand(6, 5, generator=generator).double()
    entropy = torch.rand(6, 5, generator=generator).double()
    config = DecodingConfig(5, 3, remasking=name, confidence_threshold=0.6, entropy_bound=0.4)
    confidence, uniforms = (v.masked_fill(~masked, -torch.inf) for v in (confidence, uniforms))
    entropy.masked_fill_(~masked, torch.inf)
    schedule = torch.tensor(
        [
            scheduled(config, j, num)
            for j, num in zip([0, 1, 2, 0, 1, 2], masked.sum(1).tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    together = Scores(
        config=config,
        confidence=confidence,
        schedule=schedule,
        uniforms=lambda: uniforms,
        entropy=lambda: entropy,
    )
    commit = STRATEGIES[name](together)
    assert 0 < int(commit.sum()) < int(masked.sum())
    for b in range(6):
        row = slice(b, b + 1)
        alone = replace(
            together,
            confidence=confidence[row],
            schedule=schedule[row],
            uniforms=lambda row=row: uniforms[row],
            entropy=lambda row=row: entropy[row],
        )
        assert torch.equal(STRATEGIES[name](alone)[0], commit[b])
