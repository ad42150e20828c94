"""Candidates: banned ids, temperature, top-k, top-p, and the inverse CDF."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t3d.core.rng import fold, uniform
from t3d.decoding.config import DecodingConfig
from t3d.decoding.sampling import (
    allowed_log_probs,
    entropies,
    initial_ids,
    inverse_cdf,
    sample,
    sampling_probs,
)

NONE = torch.tensor([], dtype=torch.int64)


def reference_probs(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> list[float]:
    """Temperature, top-k and top-p in plain Python; normalised."""
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    ranking = sorted(range(len(logits)), key=lambda i: (-weights[i], i))
    ranking = ranking[: top_k or None]
    total = sum(weights[i] for i in ranking)
    kept, mass = [], 0.0
    for i in ranking:
        if kept and mass >= top_p * total:
            break
        kept.append(i)
        mass += weights[i]
    return [weights[i] / mass if i in kept else 0.0 for i in range(len(logits))]


@given(
    logits=st.lists(st.floats(-8, 8), min_size=2, max_size=8),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([1.0, 0.93, 0.61, 0.13]),
)
def test_sampling_probs_equal_a_plain_reference(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    probs = sampling_probs(allowed_log_probs(row, NONE), temperature, top_k, top_p)[0]
    expected = torch.tensor(reference_probs(logits, temperature, top_k, top_p)).double()
    torch.testing.assert_close(probs / probs.sum(), expected, rtol=1e-6, atol=1e-6)


def test_top_k_keeps_exactly_k_of_equal_tokens_lowest_ids_first() -> None:
    probs = sampling_probs(torch.zeros(1, 6).log_softmax(-1), 1.0, 2, 1.0)
    assert (probs > 0).tolist() == [[True, True, False, False, False, False]]


@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda w: sum(w) > 1e-3),
    u=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2.0**-53])),
)
def test_inverse_cdf_returns_the_interval_that_holds_the_uniform(
    weights: list[float], u: float
) -> None:
    probs = torch.tensor([weights], dtype=torch.float64)
    chosen = int(inverse_cdf(probs, torch.tensor([u], dtype=torch.float64)))
    assert weights[chosen] > 0
    total = sum(weights)
    assert sum(weights[:chosen]) <= u * total + 1e-12
    assert sum(weights[: chosen + 1]) >= u * total - 1e-12


def test_inverse_cdf_never_returns_an_impossible_id_at_the_ends() -> None:
    probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]], dtype=torch.float64).expand(2, 4)
    uniforms = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert inverse_cdf(probs, uniforms).tolist() == [1, 2]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.8), (4, 0.9)])
def test_frequencies_match_the_distribution(top_k: int, top_p: float) -> None:
    num = 20_000
    logits = torch.tensor([0.3, -1.0, 2.0, 1.5, -0.2, 0.9], dtype=torch.float64)
    keys = fold(torch.tensor(11), torch.arange(num), torch.tensor(2))
    candidates = sample(
        logits.expand(num, 6),
        uniform(keys),
        NONE,
        DecodingConfig(temperature=0.7, top_k=top_k, top_p=top_p),
    )
    counts = candidates.ids.bincount(minlength=6).tolist()
    expected = reference_probs(logits.tolist(), 0.7, top_k, top_p)
    assert all((count > 0) == (share > 0) for count, share in zip(counts, expected, strict=True))
    chi_square = sum(
        (count - num * share) ** 2 / (num * share)
        for count, share in zip(counts, expected, strict=True)
        if share > 0
    )
    assert chi_square < 20.5  # the 0.999 quantile at 5 degrees of freedom


@pytest.mark.parametrize("temperature", [0.0, 0.1, 3.0])
def test_log_probability_is_untempered_and_after_banning(temperature: float) -> None:
    logits = torch.tensor([[1.0, 5.0, 0.0, 2.0]])
    banned = torch.tensor([1])
    uniforms = torch.tensor([0.5], dtype=torch.float64)
    candidates = sample(
        logits, uniforms, banned, DecodingConfig(temperature=temperature, top_k=1, top_p=0.5)
    )
    assert candidates.ids.tolist() == [3]
    expected = 2.0 - math.log(math.exp(1) + math.exp(0) + math.exp(2))
    assert candidates.log_probs.item() == pytest.approx(expected, abs=1e-6)
    assert candidates.confidence.item() == pytest.approx(math.exp(expected), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (2, 1.0), (0, 0.6)])
def test_tempered_confidence_is_what_the_candidate_was_drawn_with(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.tensor([[1.0, 5.0, 0.0, 2.0]]).expand(64, -1)
    uniforms = torch.arange(64, dtype=torch.float64) / 64
    plain = DecodingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    tempered = replace(plain, confidence="tempered")
    candidates = sample(logits, uniforms, torch.tensor([1]), tempered)
    shares = reference_probs([1.0, -math.inf, 0.0, 2.0], temperature, top_k, top_p)
    assert candidates.confidence.tolist() == pytest.approx([shares[i] for i in candidates.ids])
    other = sample(logits, uniforms, torch.tensor([1]), plain)
    assert torch.equal(candidates.ids, other.ids)
    assert torch.equal(candidates.log_probs, other.log_probs)


@given(
    st.lists(st.floats(-8, 8), min_size=3, max_size=8),
    st.sampled_from([[], [1], [0, 2]]),
)
def test_entropy_is_that_of_the_ids_that_can_be_drawn(
    logits: list[float], banned: list[int]
) -> None:
    row = torch.tensor([logits], dtype=torch.float64)
    allowed = [x for i, x in enumerate(logits) if i not in banned]
    shares = reference_probs(allowed, 1.0, 0, 1.0)
    expected = -math.fsum(p * math.log(p) for p in shares)
    actual = entropies(row, torch.tensor(banned, dtype=torch.int64)).item()
    assert actual == pytest.approx(expected, abs=1e-9)


def test_a_certain_and_a_uniform_distribution() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert entropies(logits, torch.tensor([3])).tolist() == pytest.approx([0.0, math.log(3)])


def test_greedy_needs_no_uniforms_and_is_the_limit_of_a_low_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, banned = torch.randn(40, 9, generator=generator), torch.tensor([2])
    greedy = sample(logits, None, banned, DecodingConfig(temperature=0.0))
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    cold = sample(logits, uniforms, banned, DecodingConfig(temperature=1e-4))
    assert torch.equal(greedy.ids, cold.ids)
    torch.testing.assert_close(greedy.log_probs, cold.log_probs)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_banned_ids_are_never_drawn(temperature: float) -> None:
    logits = torch.zeros(500, 6)
    logits[:, [0, 5]] = 20.0
    uniforms = uniform(fold(torch.tensor(0), torch.arange(500), torch.tensor(0)))
    banned = torch.tensor([0, 5])
    candidates = sample(logits, uniforms, banned, DecodingConfig(temperature=temperature))
    assert not {0, 5} & set(candidates.ids.tolist())


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 1.0, 1.0]])
    candidates = sample(
        logits,
        torch.full((2,), 0.99).double(),
        NONE,
        DecodingConfig(temperature=0.0),
    )
    assert candidates.ids.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("given_dtype", "recorded"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_log_probability_precision(given_dtype: torch.dtype, recorded: torch.dtype) -> None:
    logits = torch.zeros(2, 3, dtype=given_dtype)
    candidates = sample(logits, torch.zeros(2).double(), NONE, DecodingConfig(temperature=1.0))
    assert candidates.log_probs.dtype == recorded


def test_no_positions_give_no_candidates() -> None:
    empty = torch.zeros(0, 5)
    for temperature in (0.0, 1.0):
        candidates = sample(
            empty,
            torch.zeros(0).double(),
            NONE,
            DecodingConfig(temperature=temperature, top_k=2, top_p=0.5),
        )
        assert candidates.ids.shape == candidates.log_probs.shape == (0,)


def test_keys_differ_in_seed_position_and_step() -> None:
    grid = fold(torch.arange(4)[:, None, None], torch.arange(5)[:, None], torch.arange(6))
    assert len(set(grid.flatten().tolist())) == 4 * 5 * 6


def start_ids(
    seed: int, positions: range, random_share: float, mask: int = 2, banned: Collection[int] = ()
) -> list[int]:
    return initial_ids(
        seed,
        positions,
        random_share=random_share,
        mask_token_id=mask,
        banned_token_ids=banned,
        vocab_size=6,
    )


@given(st.integers(0, (1 << 63) - 1), st.integers(0, 50), st.integers(1, 20), st.integers(0, 5))
def test_the_start_depends_on_the_seed_and_each_position(
    seed: int, first: int, num: int, mask: int
) -> None:
    whole = start_ids(seed, range(70), 0.5, mask)
    assert start_ids(seed, range(first, first + num), 0.5, mask) == whole[first : first + num]
    # A larger share keeps the random tokens of a smaller one.
    tokens = start_ids(seed, range(70), 1.0, mask)
    assert mask not in tokens
    assert all(a in (mask, b) for a, b in zip(whole, tokens, strict=True))
    assert start_ids(seed, range(70), 0.0, mask) == [mask] * 70


@pytest.mark.parametrize("mask", [0, 2, 5])
def test_the_start_is_random_in_its_share_and_uniform_over_the_other_tokens(mask: int) -> None:
    num = 20_000
    ids = start_ids(3, range(num), 0.3, mask)
    for token in range(6):
        share = 0.7 if token == mask else 0.06
        bound = 4 * math.sqrt(share * (1 - share) / num)
        assert ids.count(token) / num == pytest.approx(share, abs=bound)
    assert ids != start_ids(4, range(num), 0.3, mask)


def test_what_is_never_generated_is_no_noise_either() -> None:
    assert {*start_ids(3, range(300), 1.0, 2, {0, 5})} == {1, 3, 4}
