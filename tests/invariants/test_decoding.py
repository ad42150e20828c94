"""What holds of every decode: engine = oracle, whatever shares the batch; replay = visited."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.decoding.config import Confidence, DecodingConfig, Remasking
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.remasking import STRATEGIES
from t3d.decoding.replay import visited_states
from t3d.decoding.request import Completion, Event, Passes, Request
from t3d.decoding.rollout import record
from t3d.models import SDARForCausalLM
from t3d.tasks import Example
from t3d.testing import tiny

VOCABULARY = 50
MASK = 49
BANNED = (48, 11)
STOPS = (3, 19, 30, 44)
BLOCK_STEPS = [(size, steps) for size in (1, 3, 4, 8) for steps in range(1, size + 1)]
MODES: list[dict[str, Any]] = [{}, {"fused": False}, {"ahead": True}]
WINDOWS = [(12, 4), (8, 2), (32, 8), (32, None)]
"""Block size and window; with 32 a prompt of up to 18 tokens and its answer are one block."""


MODEL = tiny(vocab_size=VOCABULARY)


def engine(
    config: DecodingConfig, batch_size: int, model: SDARForCausalLM = MODEL, **options: Any
) -> BlockDecoder:
    return BlockDecoder(
        model,
        config,
        mask_token_id=MASK,
        stop_token_ids=STOPS,
        banned_token_ids=BANNED,
        batch_size=batch_size,
        **options,
    )


def oracle(
    config: DecodingConfig, request: Request, seen: list[tuple[int, list[int]]] | None = None
) -> Completion:
    return decode_one(
        MODEL,
        request,
        config,
        mask_token_id=MASK,
        stop_token_ids=STOPS,
        banned_token_ids=BANNED,
        on_state=None if seen is None else lambda start, ids: seen.append((start, ids)),
    )


def num_steps(completion: Completion) -> int:
    """Denoising steps; the engine takes no pass for those that a draft foresaw."""
    return completion.passes.denoising + completion.passes.accepted


def assert_same(actual: Completion, expected: Completion, *, atol: float = 1e-9) -> None:
    assert actual.response_ids == expected.response_ids
    assert actual.initial_ids == expected.initial_ids
    assert actual.step_map == expected.step_map
    assert actual.num_response_tokens == expected.num_response_tokens
    assert actual.finish_reason == expected.finish_reason
    assert num_steps(actual) == num_steps(expected)
    torch.testing.assert_close(actual.log_probs, expected.log_probs, rtol=0, atol=atol)


def numbered_requests(lengths: list[int], seed: int = 0) -> list[Request]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Request(torch.randint(0, MASK, (length,), generator=generator).tolist(), seed=7 * i)
        for i, length in enumerate(lengths)
    ]


@st.composite
def configs(draw: st.DrawFn) -> DecodingConfig:
    block_size, window = draw(
        st.sampled_from([*WINDOWS, *((size, None) for size, _ in BLOCK_STEPS)])
    )
    remasking = draw(st.sampled_from(list(STRATEGIES)))
    most = 12 if remasking == "ancestral" else min(window or block_size, 12)
    return DecodingConfig(
        block_size=block_size,
        denoising_steps=draw(st.integers(1, most)),
        window=window,
        random_share=draw(st.sampled_from([0.0, 0.4, 1.0])),
        remasking=remasking,
        confidence_threshold=draw(st.sampled_from([0.2, 0.4, 0.9])),
        temperature=draw(st.sampled_from([0.0, 0.7])),
        top_k=draw(st.sampled_from([0, 5])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        max_new_tokens=draw(st.integers(1, 12)),
        entropy_bound=draw(st.sampled_from([0.0, 0.5, 3.0])),
        confidence=draw(st.sampled_from(get_args(Confidence))),
        draft_states=draw(st.sampled_from([1, 1, 2, 4, 7, 20])),
    )


requests = st.builds(
    Request,
    st.lists(st.integers(0, MASK - 1), min_size=1, max_size=18),
    st.integers(0, (1 << 63) - 1),
    st.none() | st.integers(1, 12),
    st.none() | configs(),
)
"""Some with settings of their own."""


@pytest.mark.parametrize(("block_size", "denoising_steps"), BLOCK_STEPS)
@pytest.mark.parametrize("remasking", list(STRATEGIES))
def test_engine_equals_oracle(block_size: int, denoising_steps: int, remasking: Remasking) -> None:
    sampled = denoising_steps % 2 == 0
    lengths = [1, 4, 5, 17] if sampled else [2, 3, 8, 9]
    batch = numbered_requests(lengths, seed=block_size)
    config = DecodingConfig(
        block_size=block_size,
        denoising_steps=denoising_steps,
        remasking=remasking,
        confidence_threshold=0.3,
        temperature=0.7 if sampled else 0.0,
        top_k=12 if sampled else 0,
        top_p=0.9 if sampled else 1.0,
        max_new_tokens=9,
    )
    expected = [oracle(config, request) for request in batch]
    for mode in MODES:
        for actual, own in zip(engine(config, 3, **mode).decode(batch), expected, strict=True):
            assert_same(actual, own)


@settings(max_examples=30)
@given(configs(), st.integers(0, 99))
def test_fields_without_effect_change_nothing(config: DecodingConfig, seed: int) -> None:
    whole = replace(config, window=config.window or config.block_size)
    request = Request([1, 2, 3, 4, 5], seed)
    assert whole.effective == config.effective
    for same in (whole, config.effective):
        assert_same(oracle(same, request), oracle(config, request), atol=0)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("block_size", "window"), WINDOWS)
@pytest.mark.parametrize("remasking", list(STRATEGIES))
def test_engine_equals_oracle_in_windows_and_whole_sequences(
    remasking: Remasking, block_size: int, window: int | None, sampled: bool
) -> None:
    config = DecodingConfig(
        block_size=block_size,
        denoising_steps=min(window or block_size, 5),
        window=window,
        remasking=remasking,
        confidence_threshold=0.3,
        temperature=1.0 if sampled else 0.0,
        max_new_tokens=11,
        random_share=0.3 if sampled else 0.0,
    )
    batch = numbered_requests([2, 9, 18], seed=block_size)
    for request, completion in zip(batch, engine(config, 3).decode(batch), strict=True):
        assert_same(completion, oracle(config, request))


@settings(max_examples=25)
@given(
    configs(),
    st.lists(requests, min_size=1, max_size=5),
    st.integers(1, 5),
    st.sampled_from(MODES),
    st.sampled_from([1, 5, 8192]),
    st.sampled_from([None, 64, 100]),
)
def test_engine_equals_oracle_on_anything(
    config: DecodingConfig,
    batch: list[Request],
    batch_size: int,
    mode: dict[str, Any],
    prefill_chunk: int,
    cache_tokens: int | None,
) -> None:
    """Settings mixed in a batch, every mode, prompts in chunks, rows that wait for room."""
    decoder = engine(
        config,
        batch_size,
        prefill_chunk=prefill_chunk,
        cache_tokens=roomy(cache_tokens, config, batch),
        **mode,
    )
    for request, completion in zip(batch, decoder.decode(batch), strict=True):
        expected = oracle(config, request)
        assert_same(completion, expected)
        assert_passes(completion, config, request, mode.get("fused", True), prefill_chunk)


def roomy(cache_tokens: int | None, config: DecodingConfig, batch: list[Request]) -> int | None:
    """More room, as much as the drafts of these requests take."""
    settings = [request.settings(config) for request in batch]
    most = max(s.most_states * s.block_size if s.most_states > 1 else 0 for s in settings)
    return None if cache_tokens is None else cache_tokens + most


def assert_passes(
    completion: Completion, config: DecodingConfig, request: Request, fused: bool, chunk: int
) -> None:
    """Passes beside the denoising steps, which `assert_same` compares with the oracle's."""
    size, length = request.settings(config).block_size, len(request.prompt_ids)
    chunks = -(-(length // size * size) // max(chunk // size * size, size))
    num_blocks = -(-(length + len(completion.response_ids)) // size) - length // size
    prefills, commits = (max(chunks - 1, 0), 0) if fused else (chunks, num_blocks - 1)
    assert completion.passes.prefill == prefills
    if request.settings(config).draft_states == 1:
        assert completion.passes.commit == commits
    else:
        # The pass that verified a whole block stored it.
        assert completion.passes.commit <= commits


@settings(max_examples=15)
@given(
    configs(),
    st.lists(requests, min_size=2, max_size=5),
    st.integers(1, 4),
    st.sampled_from([None, 64, 120]),
    st.booleans(),
    st.data(),
)
def test_events_tell_all_of_each_request_whatever_comes_and_goes(
    config: DecodingConfig,
    batch: list[Request],
    batch_size: int,
    cache_tokens: int | None,
    ahead: bool,
    data: st.DataObject,
) -> None:
    """Requests arrive and are cancelled between steps; the others decode as by the oracle."""
    room = roomy(cache_tokens, config, batch)
    decoder = engine(config, batch_size, cache_tokens=room, ahead=ahead)
    arrivals = [data.draw(st.integers(0, 6)) for _ in batch]
    ends = [data.draw(st.none() | st.integers(0, 12)) for _ in batch]
    ids: dict[int, int] = {}
    seen: dict[int, list[Event]] = {}
    for now in count():
        for index, request in enumerate(batch):
            if arrivals[index] == now:
                ids[index] = decoder.submit(request)
                seen[ids[index]] = []
            if ends[index] == now and index in ids:
                events = seen[ids[index]]
                finished = bool(events) and events[-1].completion is not None
                assert decoder.cancel(ids[index]) is not finished
                assert decoder.cancel(ids[index]) is False
                if not finished:
                    del seen[ids[index]]
        before = decoder.num_unfinished
        events = decoder.step()
        for event in events:
            seen[event.id].append(event)
        assert before - decoder.num_unfinished == sum(e.completion is not None for e in events)
        if now >= max(arrivals) and not decoder.num_unfinished:
            break
    assert len(set(ids.values())) == len(batch)
    for index, request in enumerate(batch):
        if ids[index] not in seen:
            continue
        events = seen[ids[index]]
        completion = events[-1].completion
        assert completion is not None
        assert_same(completion, oracle(config, request))
        assert all(e.completion is None for e in events[:-1])
        told = {
            place: (token, event.step)
            for event in events
            for place, token in zip(event.places, event.token_ids, strict=True)
        }
        assert len(told) == sum(len(event.places) for event in events)
        assert told == {
            place: (token, step)
            for place, (token, step) in enumerate(
                zip(completion.response_ids, completion.step_map, strict=True)
            )
            if step >= 0
        }


@pytest.mark.parametrize("denoising_steps", [1, 2, 4])
def test_a_static_block_costs_exactly_its_steps(denoising_steps: int) -> None:
    config = DecodingConfig(4, denoising_steps, temperature=0.0, max_new_tokens=16)
    sizes: list[int] = []
    hook = MODEL.model.register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].shape[1])
    )
    decoder = BlockDecoder(MODEL, config, mask_token_id=MASK, stop_token_ids=(), batch_size=3)
    try:
        completions = decoder.decode(numbered_requests([8] * 3))
    finally:
        hook.remove()
    # The prompt rides on the first step, a finished block on the next one's first step.
    steps = [4] * (denoising_steps - 1)
    assert sizes == [3 * width for width in [12, *steps, *[8, *steps] * 3]]
    assert all(c.passes == Passes(denoising=4 * denoising_steps) for c in completions)


@settings(max_examples=15)
@given(configs(), st.permutations(range(6)), st.integers(1, 7), st.integers(0, 6))
def test_neither_batch_size_nor_order_nor_company_matters(
    config: DecodingConfig, order: list[int], batch_size: int, num: int
) -> None:
    batch = numbered_requests([6, 1, 13, 4, 9, 20])
    alone = engine(config, 6).decode(batch)
    chosen = order[:num]
    shuffled = engine(config, batch_size).decode([batch[i] for i in chosen])
    for i, completion in zip(chosen, shuffled, strict=True):
        assert_same(completion, alone[i])
        assert completion.passes == alone[i].passes


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_decoding_has_an_attention_of_its_own(implementation: str) -> None:
    model = tiny(vocab_size=VOCABULARY)
    model.set_attn_implementation(implementation)
    batch = numbered_requests([3, 9, 6])
    config = DecodingConfig(denoising_steps=3, temperature=0.0, max_new_tokens=6)
    expected = engine(config, 2).decode(batch)
    for actual, reference in zip(engine(config, 2, model).decode(batch), expected, strict=True):
        assert_same(actual, reference)
    assert model.config._attn_implementation == implementation


@settings(max_examples=25)
@given(configs(), requests)
def test_every_output_is_well_formed(config: DecodingConfig, request: Request) -> None:
    [completion] = engine(config, 1).decode([request])
    config = request.settings(config)
    prompt_length, size = len(request.prompt_ids), config.block_size
    length = prompt_length + len(completion.response_ids)
    assert length % size == 0
    for token, step in zip(completion.response_ids, completion.step_map, strict=True):
        if step < 0:
            assert token == MASK
        else:
            assert token not in (MASK, *BANNED)
    num_windows, most = size // config.window_size, config.denoising_steps
    if config.remasking == "entropy_bounded":
        most = config.window_size
    assert max(completion.step_map) < num_windows * most
    # Nothing of a window commits before the whole of the windows before it in the block.
    windows: dict[int, list[int]] = {}
    for position, step in enumerate(completion.step_map, prompt_length):
        windows.setdefault(position // config.window_size, []).append(step)
    for number, steps in windows.items():
        earlier = windows.get(number - 1) if number % num_windows else None
        if earlier is not None and max(steps) >= 0:
            assert min(earlier) >= 0
            assert max(earlier) < min(step for step in steps if step >= 0)
    for token in completion.initial_ids:
        assert token == MASK or config.random_share > 0
        assert token != MASK or config.random_share < 1
    assert all(value <= 0 for value in completion.log_probs)

    stops = [i for i, token in enumerate(completion.token_ids) if token in STOPS]
    assert min(completion.step_map[: completion.num_response_tokens]) >= 0
    assert completion.num_response_tokens <= request.num_new(config)
    if completion.finish_reason == "stop":
        assert stops == [completion.num_response_tokens - 1]
        # Nothing is decoded beyond the block of the stop token.
        assert length - size < prompt_length + completion.num_response_tokens <= length
    else:
        assert stops == []
        assert completion.num_response_tokens == request.num_new(config)
        assert min(completion.step_map) >= 0

    num_blocks = length // size - prompt_length // size
    # Every pass is a denoising step, and a block takes as many passes as steps.
    assert completion.passes == Passes(denoising=completion.passes.denoising)
    assert num_blocks <= num_steps(completion) <= num_blocks * num_windows * most


@settings(max_examples=25)
@given(configs(), requests)
def test_replay_rebuilds_every_visited_state(config: DecodingConfig, request: Request) -> None:
    seen: list[tuple[int, list[int]]] = []
    completion = oracle(config, request, seen)
    config = request.settings(config)
    trajectory = record(Example("p", ""), request.prompt_ids, completion, config)
    assert visited_states(trajectory) == seen
    # A position shows x_T, then its token for good.
    ids = request.prompt_ids + completion.response_ids
    initial = request.prompt_ids + completion.initial_ids
    for (start, state), (later, following) in pairwise([*seen, (-1, [])]):
        block = slice(start, start + config.block_size)
        after = following if later == start else ids[block]
        for shown, first, then, last in zip(state, initial[block], after, ids[block], strict=True):
            assert shown in (first, last)
            assert then in ((first, last) if shown == first else (last,))


@settings(max_examples=25)
@given(
    configs(),
    st.lists(requests, min_size=1, max_size=5),
    st.integers(1, 5),
    st.sampled_from([None, 64, 100]),
    st.integers(0, 1),
)
def test_another_model_may_draft(
    config: DecodingConfig,
    batch: list[Request],
    batch_size: int,
    cache_tokens: int | None,
    seed: int,
) -> None:
    """Whether it predicts as the model does (seed 0) or not, the output is the model's own."""
    other = tiny(vocab_size=VOCABULARY, seed=seed, num_hidden_layers=2 - seed)
    room = roomy(cache_tokens, config, batch)
    decoder = engine(config, batch_size, cache_tokens=room, draft_model=other)
    for request, completion in zip(batch, decoder.decode(batch), strict=True):
        assert_same(completion, oracle(config, request))
        assert_same(completion, engine(config, 1, draft_model=other).decode([request])[0])
