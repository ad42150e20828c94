"""What decoding needs against what the engine runs; rows from a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.bench import decode as bench
from t3d.bench.config import DecodeSettings, Engine
from t3d.bench.decode import (
    lockstep,
    make_engine,
    measure,
    needed_passes,
    passes_per_block,
    random_requests,
)
from t3d.bench.roofline import Load, ModelCosts, Rates
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Request
from t3d.models import BlockDiffusionLM, LanguageModel
from t3d.testing import tiny

MODEL = tiny()
COSTS = ModelCosts.of(MODEL)
RATES = Rates(bytes_per_second=1e9, flops_per_second=1e9)


@contextmanager
def recorded(model: BlockDiffusionLM) -> Iterator[list[Load]]:
    """What the layers and the head are given, one sequence at a time."""
    seen: list[Load] = []

    def layers(_: Any, given: tuple[Any, ...], settings: dict[str, Any]) -> None:
        ids, _, position, *_ = given
        assert len(ids) == 1
        stored, tokens = int(position.min()), ids.shape[1]
        # A mask has a row for each query, or one for all.
        pairs = sum(
            int(mask.isfinite().sum()) * width // mask.shape[2]
            for _, (_, width), mask in settings["attend"]._groups
        )
        seen.append(Load(tokens, pairs, -1, stored))

    def head(_: Any, given: tuple[torch.Tensor]) -> None:
        seen.append(replace(seen.pop(), logits=given[0].shape[-2]))

    handles = [
        model.base_model.register_forward_pre_hook(layers, with_kwargs=True),
        model.lm_head.register_forward_pre_hook(head),  # type: ignore[operator]
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@given(
    length=st.integers(1, 23),
    size=st.sampled_from([2, 4, 8]),
    share=st.floats(0.1, 1),
    new=st.integers(1, 20),
)
@settings(max_examples=25, deadline=None)
def test_needed_passes_are_those_of_the_fused_engine(
    length: int, size: int, share: float, new: int
) -> None:
    steps = max(1, round(share * size))
    config = DecodingConfig(size, steps, temperature=0.0, max_new_tokens=new)
    decoder = BlockDecoder(MODEL, config, mask_token_id=63, stop_token_ids=(), batch_size=1)
    request = Request([(7 * i) % 63 for i in range(length)])
    with recorded(MODEL) as seen:
        [completion] = decoder.decode([request])
    assert needed_passes(request, completion, size) == seen


passes = st.builds(Load, *[st.integers(0, 50)] * 4)


@given(requests=st.lists(st.lists(passes, min_size=1, max_size=5), min_size=1, max_size=7))
def test_requests_in_lockstep_share_the_weights_and_nothing_else(
    requests: list[list[Load]],
) -> None:
    alone = lockstep(requests, 1)
    together = lockstep(requests, len(requests))
    assert len(alone) == sum(map(len, requests))
    assert len(together) == max(map(len, requests))
    assert sum(map(COSTS.flops, together)) == pytest.approx(sum(map(COSTS.flops, alone)))
    weights = COSTS.weight_bytes(1)
    cache = [sum(map(COSTS.num_bytes, work)) - len(work) * weights for work in (alone, together)]
    assert cache[0] == pytest.approx(cache[1])


def test_engines_decode_the_same(lm: LanguageModel) -> None:
    asked = DecodeSettings(prompt_tokens=(3, 9), new_tokens=10)
    requests, config = random_requests(lm, asked, 5), asked.decoding(2)
    first, *others = [make_engine(lm, engine, config, 2)(requests) for engine in get_args(Engine)]
    for done in others:
        assert [c.response_ids for c in done] == [c.response_ids for c in first]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_step_is_a_pass_and_a_drafted_one_may_be_none(lm: LanguageModel, steps: int) -> None:
    asked = DecodeSettings(prompt_tokens=(8, 8), new_tokens=20)
    requests, config = random_requests(lm, asked, 3), asked.decoding(steps)
    plain, verified, oracle = (
        passes_per_block(requests, make_engine(lm, engine, config, 2)(requests), 4)
        for engine in get_args(Engine)
    )
    assert plain == oracle == steps
    assert 1 <= verified <= steps
    assert verified < steps or steps < 4


def test_prompts_are_the_same_for_every_number(lm: LanguageModel) -> None:
    asked = DecodeSettings(prompt_tokens=(3, 6))
    requests = random_requests(lm, asked, 40)
    assert random_requests(lm, asked, 7) == requests[:7]
    assert {len(r.prompt_ids) for r in requests} == {3, 4, 5, 6}
    assert all(lm.mask_token_id not in r.prompt_ids for r in requests)


def test_rows_are_medians_of_engines_in_turns(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    # Seconds of t3d and t3d_verified by turns; each one's median is in another place.
    times = iter([2.0, 9.0, 1.0, 4.0, 100.0, 5.0])

    def noted(lm: LanguageModel, engine: Engine, *others: Any) -> Any:
        run = make_engine(lm, engine, *others)

        def call(requests: Any) -> Any:
            order.append(engine)
            return run(requests)

        return call

    def clock(call: Callable[[], object], device: torch.device) -> float:
        call()
        return next(times)

    monkeypatch.setattr(bench, "make_engine", noted)
    monkeypatch.setattr(bench, "seconds", clock)
    asked = DecodeSettings(
        batch_sizes=(1,), denoising_steps=(2,), prompt_tokens=(5, 9), new_tokens=8, num_requests=3
    )
    rows = measure(lm, asked, RATES)
    assert order == ["t3d", "t3d_verified"] * 4
    assert [row.engine for row in rows] == ["t3d", "t3d_verified"]
    assert [row.tokens_per_second for row in rows] == [24 / 2, 24 / 5]
    assert [row.latency_s for row in rows] == [2 / 3, 5 / 3]
    assert [row.ratio_to_ours for row in rows] == [1, 2 / 5]
    # Both decode the same, so one bound holds for both.
    ours, verified = (row.roofline_share for row in rows)
    assert 0 < verified == pytest.approx(ours * 2 / 5)


def test_a_row_for_every_setting(lm: LanguageModel) -> None:
    asked = DecodeSettings(
        engines=("t3d", "oracle"),
        batch_sizes=(2, 1),
        denoising_steps=(1, 4),
        prompt_tokens=(4, 8),
        new_tokens=4,
        num_requests=3,
        repeats=1,
    )
    rows = measure(lm, asked, RATES)
    found = [(row.batch_size, row.denoising_steps, row.engine) for row in rows]
    assert found == [
        (b, s, e) for b in asked.batch_sizes for s in asked.denoising_steps for e in asked.engines
    ]
    for row in rows:
        assert (row.model, row.device, row.dtype) == (lm.name, "cpu", "float32")
        # Whole batches.
        assert row.num_requests == {1: 3, 2: 4}[row.batch_size]
        assert row.tokens_per_second > 0
        assert row.roofline_share > 0
        if row.batch_size == 1:
            assert row.latency_s is not None
            assert row.latency_s * row.tokens_per_second == pytest.approx(4)
        else:
            assert row.latency_s is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"engines": ("oracle",)}, "engines must name t3d"),
        ({"engines": ("t3d", "vllm")}, "engines must name some of t3d, t3d_verified, oracle"),
        ({"batch_sizes": (4, 0)}, "batch_sizes must lie in .1, 65536., got 0"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"denoising_steps": ()}, "denoising_steps is empty"),
        ({"denoising_steps": (1, 5)}, "denoising_steps must be at most block_size=4"),
        ({"prompt_tokens": (9, 8)}, "prompt_tokens must rise"),
        ({"prompt_tokens": (0, 8)}, "prompt_tokens must be at least 1"),
        ({"new_tokens": 0}, "new_tokens must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"num_requests": 0}, "num_requests must lie in .1, 65536., got 0"),
    ],
)
def test_settings_that_cannot_be_measured(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeSettings(**changed)
