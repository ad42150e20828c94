"""The engine by example: stopping, counting, refilling, errors. Its invariants lie in
`tests/invariants/test_decoding.py`."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from functools import cache
from math import exp
from types import FrameType
from typing import Any

import pytest
import torch

from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Completion, Passes, Request
from t3d.testing import tiny

MODEL = tiny(vocab_size=50, max_position_embeddings=128)
MASK = 49
CONFIG = DecodingConfig(block_size=4, denoising_steps=4, temperature=0.0, max_new_tokens=12)


def decoder(config: DecodingConfig = CONFIG, **options: Any) -> BlockDecoder:
    options = {"mask_token_id": MASK, "stop_token_ids": (), "batch_size": 4, **options}
    return BlockDecoder(MODEL, config, **options)


def prompt(length: int, offset: int = 0) -> list[int]:
    return [(3 + 7 * i + offset) % 49 for i in range(length)]


@cache
def stop_example() -> tuple[Request, Completion]:
    """Decodes to four different tokens, out of order, the last position not last."""
    requests = [Request(prompt(8, offset)) for offset in range(49)]
    for request, free in zip(requests, decoder(batch_size=49).decode(requests), strict=True):
        steps = free.step_map[:4]
        if len(set(free.response_ids[:4])) == 4 and steps[3] < 3 and steps[1] > steps[2]:
            return request, free
    raise AssertionError("no example")


def decode(length: int, config: DecodingConfig = CONFIG, **options: Any) -> Completion:
    return decoder(config, **options).decode([Request(prompt(length))])[0]


@pytest.mark.parametrize(("length", "blocks"), [(1, 4), (3, 4), (4, 3), (5, 4), (8, 3), (11, 4)])
def test_passes_without_a_stop(length: int, blocks: int) -> None:
    completion = decode(length)
    # At one token a pass, each token costs one pass; prompt and commits ride on those.
    assert completion.passes == Passes(denoising=4 * blocks - length % 4)
    unfused = decode(length, fused=False)
    assert replace(unfused, passes=completion.passes) == completion
    # Otherwise only the last block has no commit.
    assert unfused.passes == Passes(int(length >= 4), completion.passes.denoising, blocks - 1)
    assert len(completion.response_ids) == 4 * blocks - length % 4
    assert completion.num_response_tokens == 12
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 12


@pytest.mark.parametrize("denoising_steps", [1, 2, 3])
def test_few_steps(denoising_steps: int) -> None:
    completion = decode(8, replace(CONFIG, denoising_steps=denoising_steps))
    assert completion.passes == Passes(denoising=3 * denoising_steps)
    quotas = {1: [4], 2: [2, 2], 3: [2, 1, 1]}[denoising_steps]
    for block in range(3):
        steps = completion.step_map[4 * block : 4 * block + 4]
        assert [steps.count(step) for step in range(denoising_steps)] == quotas


def test_a_remainder_leaves_fewer_passes() -> None:
    # Two positions of the first block are masked and each step commits two.
    completion = decode(6, replace(CONFIG, denoising_steps=2, max_new_tokens=2))
    assert completion.passes == Passes(denoising=1)
    assert completion.step_map == [0, 0]


def test_a_certain_model_needs_one_pass_a_block() -> None:
    dynamic = replace(CONFIG, remasking="low_confidence_dynamic", confidence_threshold=0.0)
    completion = decode(8, dynamic)
    assert completion.passes == Passes(denoising=3)
    assert set(completion.step_map) == {0}


def test_a_block_as_long_as_the_sequence_is_never_prefilled_nor_committed() -> None:
    for length in (1, 5, 20):
        completion = decode(length, replace(CONFIG, block_size=32, denoising_steps=8))
        # Four a pass; the prompt is the visible head.
        assert completion.passes == Passes(denoising=-(-(32 - length) // 4))
        assert len(completion.response_ids) == 32 - length


def test_windows_commit_from_left_to_right() -> None:
    config = replace(CONFIG, block_size=12, window=4, denoising_steps=2)
    completion = decode(14, config)  # ends in the first window of the second block
    assert completion.passes == Passes(denoising=1 + 2 + 2 + 6)
    assert sorted(completion.step_map[:2]) == [0, 0]
    assert sorted(completion.step_map[2:6]) == [1, 1, 2, 2]
    assert sorted(completion.step_map[6:10]) == [3, 3, 4, 4]
    third = completion.step_map[10:]
    assert [sorted(third[i : i + 4]) for i in (0, 4, 8)] == [
        [2 * i, 2 * i, 2 * i + 1, 2 * i + 1] for i in range(3)
    ]


def test_a_random_start_is_seen_by_the_model_and_never_kept() -> None:
    requests = [Request(prompt(6), seed) for seed in range(8)]
    config = replace(CONFIG, denoising_steps=1)
    plain = decoder(config).decode(requests)
    noised = decoder(replace(config, random_share=1.0)).decode(requests)
    assert all(set(c.initial_ids) == {MASK} for c in plain)
    assert all(MASK not in c.initial_ids for c in noised)
    # Greedy: only x_T tells the seeds apart.
    assert len({tuple(c.response_ids) for c in plain}) == 1
    assert len({tuple(c.response_ids) for c in noised}) > 1
    assert all(c.step_map == [0] * 14 for c in noised)


def test_what_never_committed_is_the_mask_token_even_after_a_random_start() -> None:
    config = replace(CONFIG, random_share=1.0, remasking="sequential")
    free = decode(8, config)
    stopped = decode(8, config, stop_token_ids={free.response_ids[0]})
    assert stopped.response_ids == [free.response_ids[0], MASK, MASK, MASK]
    assert stopped.initial_ids == free.initial_ids[:4]


def test_stop_waits_for_everything_before_it_in_the_block() -> None:
    request, free = stop_example()
    steps = free.step_map[:4]
    for place in range(4):
        [completion] = decoder(stop_token_ids={free.response_ids[place]}).decode([request])
        assert completion.finish_reason == "stop"
        assert completion.num_response_tokens == place + 1
        assert completion.token_ids == free.response_ids[: place + 1]
        # It ends in the very step that fills the last gap before it.
        last = max(steps[: place + 1])
        assert completion.passes == Passes(denoising=last + 1)
        for i, step in enumerate(steps):
            committed = step <= last
            assert completion.step_map[i] == (step if committed else -1)
            assert completion.response_ids[i] == (free.response_ids[i] if committed else MASK)
            assert (completion.log_probs[i] == 0.0) == (not committed)


def test_stop_in_a_later_block() -> None:
    free = decode(6)
    # Response token 2 is the first of the second block.
    place = next(p for p in range(2, 6) if free.response_ids[p] not in free.response_ids[:p])
    completion = decode(6, stop_token_ids={free.response_ids[place]})
    assert completion.finish_reason == "stop"
    assert completion.num_response_tokens == place + 1
    assert len(completion.response_ids) == 6
    assert decode(6, stop_token_ids={free.response_ids[place]}, fused=False).passes.commit == 1


def test_a_stop_token_in_the_prompt_ends_nothing() -> None:
    visible = prompt(6)[4:]  # the head of the first block
    free = decode(6)
    assert not set(visible) & set(free.response_ids)
    assert decode(6, stop_token_ids=set(visible)) == free


def test_a_stop_token_beyond_the_limit_is_length() -> None:
    request, free = stop_example()
    stops = {free.response_ids[2]}
    [completion] = decoder(replace(CONFIG, max_new_tokens=2), stop_token_ids=stops).decode(
        [request]
    )
    assert completion.response_ids == free.response_ids[:4]
    assert completion.finish_reason == "length"
    assert completion.num_response_tokens == 2


def test_banning_changes_what_is_generated() -> None:
    free = decode(8)
    banned = set(free.response_ids[:2])
    completion = decode(8, banned_token_ids=banned)
    assert not banned & set(completion.response_ids)


def test_waiting_requests_take_the_place_of_finished_ones() -> None:
    requests = [Request(prompt(length, length)) for length in (9, 3, 4, 17, 2, 8, 5)]
    alone = [decoder().decode([request])[0] for request in requests]
    stop = alone[0].response_ids[1]
    calls: list[tuple[int, Completion]] = []
    sizes: list[int] = []
    hook = MODEL.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(
            len(set((kwargs["slots"].target // kwargs["slots"].num_slots).tolist()))
        ),
        with_kwargs=True,
    )
    try:
        completions = decoder(stop_token_ids={stop}, batch_size=3).decode(
            requests, on_finish=lambda index, completion: calls.append((index, completion))
        )
    finally:
        hook.remove()
    assert sorted(index for index, _ in calls) == list(range(7))
    assert all(completions[index] is completion for index, completion in calls)
    assert calls[0][0] != 6  # told as each finishes, not at the end
    assert completions[0].finish_reason == "stop"
    assert max(sizes) == 3
    # Rows are kept busy: fewer passes than one request after another would take.
    assert len(sizes) < 0.6 * sum(completion.passes.total for completion in completions)


def test_no_requests() -> None:
    assert decoder().decode([]) == []


def test_decoding_leaves_requests_and_gradients_alone() -> None:
    request = Request(prompt(5))
    decoder().decode([request])
    assert request.prompt_ids == prompt(5)
    assert all(parameter.grad is None for parameter in MODEL.parameters())


def test_errors_name_the_request_and_the_remedy() -> None:
    good = Request([1])
    with pytest.raises(ValueError, match="request 1: max_new_tokens must be at least 1, got 0"):
        decoder().decode([good, Request([1], max_new_tokens=0)])
    with pytest.raises(ValueError, match=r"request 1: the prompt is empty"):
        decoder().decode([good, Request([])])
    with pytest.raises(ValueError, match=r"request 1: .*117 tokens.*12.*132.*=128; shorten"):
        decoder().decode([good, Request(prompt(117))])
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="request 1: seed must lie in"):
            decoder().decode([good, Request([1], seed=seed)])
    # The last block is decoded as a whole, so all of it must fit.
    with pytest.raises(ValueError, match=r"make 200 in whole blocks of 100"):
        decoder(replace(CONFIG, block_size=100)).decode([Request(prompt(89))])
    for token in (-1, 50):
        with pytest.raises(ValueError, match=rf"request 1: token id {token} .*vocabulary of 50"):
            decoder().decode([good, Request([0, token])])
    for name in ("batch_size", "prefill_chunk", "cache_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            decoder(CONFIG, **{name: 0})
    with pytest.raises(
        ValueError, match=r"request 1: its 9 .* 15 .* 24 .*cache's 23; raise cache_tokens"
    ):
        decoder(cache_tokens=23).decode([good, Request(prompt(9))])
    with pytest.raises(ValueError, match="token id 50 lies outside"):
        decoder(mask_token_id=50)
    with pytest.raises(ValueError, match="token id 77 lies outside"):
        decoder(banned_token_ids=[77])


def test_a_request_may_fill_all_positions() -> None:
    assert len(decode(116).response_ids) == 12


def test_a_training_model_is_refused() -> None:
    model = tiny(vocab_size=50).train()
    engine = BlockDecoder(model, CONFIG, mask_token_id=MASK, stop_token_ids=(), batch_size=1)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        engine.decode([Request([1])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_decodes_and_records_finite_log_probs(dtype: torch.dtype) -> None:
    model = tiny(vocab_size=50, dtype=dtype)
    engine = BlockDecoder(model, CONFIG, mask_token_id=MASK, stop_token_ids=(), batch_size=2)
    for completion in engine.decode([Request(prompt(3)), Request(prompt(9))]):
        assert MASK not in completion.response_ids
        assert all(-20 < value <= 0 for value in completion.log_probs)


def test_settings_of_requests_share_passes() -> None:
    """A batch of different block sizes, steps, strategies and temperatures."""
    settings = [
        None,
        replace(CONFIG, block_size=8, denoising_steps=2),
        replace(CONFIG, temperature=1.0, top_k=5),
        replace(CONFIG, remasking="entropy_bounded", entropy_bound=2.0, max_new_tokens=20),
    ]
    requests = [Request(prompt(9, i), i, config=config) for i, config in enumerate(settings)]
    passes = []
    hook = MODEL.model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        completions = decoder().decode(requests)
    finally:
        hook.remove()
    assert len(passes) < sum(completion.passes.total for completion in completions)
    for request, completion in zip(requests, completions, strict=True):
        [alone] = decoder(request.settings(CONFIG)).decode([replace(request, config=None)])
        assert completion.response_ids == alone.response_ids
        assert completion.step_map == alone.step_map
        assert completion.passes == alone.passes


def test_decode_waits_for_nobody_and_leaves_nothing() -> None:
    engine = decoder(batch_size=1)
    ids = [engine.submit(Request(prompt(5))), engine.submit(Request(prompt(6)))]
    engine.step()
    with pytest.raises(ValueError, match="2 submitted requests are unfinished; step until"):
        engine.decode([Request([1])])
    assert [engine.cancel(id) for id in ids] == [True, True]
    assert engine.cancel(ids[0]) is False
    assert engine.step() == []

    class Enough(Exception):
        pass

    def stop(index: int, completion: Completion) -> None:
        raise Enough

    with pytest.raises(Enough):
        engine.decode([Request(prompt(5)), Request(prompt(6))], on_finish=stop)
    assert engine.num_unfinished == 0
    assert gc.get_freeze_count() == 0
    assert engine.decode([Request(prompt(7))]) == [decode(7)]


def interrupted(engine: BlockDecoder, line: tuple[str, int] | None) -> set[tuple[str, int]]:
    """Decode two requests, with an interrupt at that line of the decoder; the lines run."""
    lines = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if "t3d/decoding" not in frame.f_code.co_filename:
            return None
        here = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line":
            lines.add(here)
            if here == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        engine.decode([Request(prompt(3), max_new_tokens=1), Request(prompt(9), max_new_tokens=2)])
    finally:
        sys.settrace(before)
    return lines


def test_an_interrupt_anywhere_leaves_a_usable_decoder() -> None:
    engine = decoder(batch_size=1)
    lines = interrupted(engine, None) & interrupted(engine, None)  # Memoised calls run once.
    expected = decode(5)
    for line in sorted(lines):
        with pytest.raises(KeyboardInterrupt):
            interrupted(engine, line)
        assert engine.num_unfinished == 0
    assert engine.decode([Request(prompt(5))]) == [expected]


@pytest.mark.parametrize("draft_states", [1, 4])
def test_events_tell_log_probs_alternatives_and_passes(draft_states: int) -> None:
    config = replace(CONFIG, draft_states=draft_states)
    engine = decoder(config)
    for length, num in ((3, 50), (8, 2), (9, 0)):
        engine.submit(Request(prompt(length), num_alternatives=num))
    events = []
    while engine.num_unfinished:
        events += engine.step()
    # All tokens but the mask may be generated.
    for id, (length, num) in enumerate(((3, MASK), (8, 2), (9, 0))):
        own = [event for event in events if event.id == id]
        completion = own[-1].completion
        assert completion is not None
        # Asking for alternatives changes nothing.
        alone = decode(length, config)
        assert replace(completion, log_probs=alone.log_probs) == alone
        passes = [event.passes.total for event in own]
        assert passes == sorted(passes)
        assert passes[-1] == completion.passes.total
        assert draft_states > 1 or passes == list(range(1, len(own) + 1))
        for event in own:
            commits = zip(event.places, event.token_ids, event.log_probs, strict=True)
            for (place, token, log_prob), found in zip(commits, event.alternatives, strict=True):
                assert completion.log_probs[place] == log_prob
                assert len(found) == num
                assert MASK not in found
                assert list(found.values()) == sorted(found.values(), reverse=True)
                if num:
                    assert next(iter(found)) == token
                    assert found[token] == pytest.approx(log_prob)
                if num == MASK:
                    assert sum(map(exp, found.values())) == pytest.approx(1)
