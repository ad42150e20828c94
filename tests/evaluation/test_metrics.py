from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.decoding.request import Completion, Passes
from t3d.evaluation.metrics import DecodingMetrics, decoding_metrics, wilson_interval
from t3d.evaluation.results import ResultRow

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published_values(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(counts, st.sampled_from([(0.90, 1.6448536269514722), (0.95, 1.959963984540054)]))
def test_wilson_ends_solve_the_score_equation(
    count: tuple[int, int], level: tuple[float, float]
) -> None:
    """An end q lies z standard errors, taken at q, from the observed share."""
    correct, n = count
    for q in wilson_interval(correct, n, level[0]):
        expected = level[1] ** 2 * q * (1 - q) / n
        assert math.isclose((correct / n - q) ** 2, expected, rel_tol=1e-6, abs_tol=1e-12)


@given(counts)
def test_wilson_contains_the_share_and_mirrors(count: tuple[int, int]) -> None:
    correct, n = count
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high
    mirrored = wilson_interval(n - correct, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(counts)
def test_wilson_narrows_with_data_and_widens_with_level(count: tuple[int, int]) -> None:
    correct, n = count

    def width(interval: tuple[float, float]) -> float:
        return interval[1] - interval[0]

    assert width(wilson_interval(10 * correct, 10 * n)) < width(wilson_interval(correct, n))
    assert width(wilson_interval(correct, n, 0.99)) > width(wilson_interval(correct, n))


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_share(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {correct} of {n}"):
        wilson_interval(correct, n)


def completion(num_tokens: int, passes: Passes, *, stopped: bool = True) -> Completion:
    """The last block runs on for two tokens after the stop; they must not count."""
    num = num_tokens + 2
    reason = "stop" if stopped else "length"
    return Completion([5] * num, [0] * num, [-0.1] * num, num_tokens, reason, passes)


def test_decoding_metrics_known_values() -> None:
    made = decoding_metrics(
        [
            completion(12, Passes(1, 4, 2, tokens=90, drafted=8, accepted=6)),
            completion(6, Passes(2, 5, 0, tokens=60, drafted=4, accepted=3)),
            completion(18, Passes(prefill=1, denoising=9, commit=0), stopped=False),
        ]
    )
    assert made == DecodingMetrics(
        tokens_per_forward=36 / 18,
        tokens_per_pass=36 / 24,
        passes=24,
        average_steps=6.0,
        average_length=12.0,
        truncated=1 / 3,
        tokens_computed=150,
        accepted=9 / 12,
    )
    undrafted = decoding_metrics([completion(18, Passes(denoising=9))])
    assert undrafted.accepted is None


def test_decoding_metrics_are_fields_of_a_row() -> None:
    row = {field.name: field.type for field in dataclasses.fields(ResultRow)}
    made = {field.name: field.type for field in dataclasses.fields(DecodingMetrics)}
    assert made.items() <= row.items()


some = st.builds(
    completion,
    st.integers(1, 50),
    st.builds(Passes, st.integers(0, 3), st.integers(1, 50), st.integers(0, 9)),
    stopped=st.booleans(),
)


@given(st.lists(some, min_size=1, max_size=8), st.integers(2, 4))
def test_decoding_metrics_are_ratios_of_totals(completions: list[Completion], k: int) -> None:
    """Repeating the same work changes nothing but the total; ratios are pooled, not averaged."""
    once, often = decoding_metrics(completions), decoding_metrics(completions * k)
    assert often.passes == k * once.passes
    assert dataclasses.astuple(dataclasses.replace(often, passes=once.passes)) == pytest.approx(
        dataclasses.astuple(once)
    )
    assert once.average_length / once.average_steps == pytest.approx(once.tokens_per_forward)


def test_decoding_metrics_refuse_nothing() -> None:
    with pytest.raises(ValueError, match="at least one completion"):
        decoding_metrics([])
