from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.interop.rollouts.alignment import (
    UnalignedError,
    align,
    make_trajectory,
    passes,
    steps_within_blocks,
)
from t3d.models import LanguageModel

from .conftest import jetengine

seeds = st.integers(0, 2**32 - 1)


def trajectory(lm: LanguageModel, prompt: str, text: str, step_map: list[int], size: int) -> Any:
    encode = lm.tokenizer.encode
    return make_trajectory(
        lm, encode(prompt), encode(text), step_map, size, prompt_id="p", answer=None
    )


def test_an_example_by_hand(chars: LanguageModel) -> None:
    """Blocks of 4 after a prompt of 5: positions 5-7, then 8-11, of which 11 was not written.

    Pass 1 committed b; 2 a and c; 3 e; 4 d; 5 position 11, behind the stop token; 6 the stop.
    """
    row = trajectory(chars, "12345", "abcde<|im_end|>", [2, 1, 2, 4, 3, 6], 4)
    mask = chars.mask_token_id
    assert row.step_map == [1, 0, 1, 1, 0, 3, -1]
    assert row.response_ids == [*chars.tokenizer.encode("abcde<|im_end|>"), mask]
    assert row.initial_ids == [mask] * 7
    assert (row.num_response_tokens, row.finish_reason) == (6, "stop")
    assert row.decode_order() == [1, 0, 1, 3, 2, 4, 1 << 30]
    assert passes(row) == [2, 1, 2, 4, 3, 5], "the pass behind the stop token is gone"


@given(seeds, st.integers(1, 9), st.integers(1, 20), st.integers(1, 6))
def test_steps_are_those_of_the_decoder(seed: int, prompt: int, num: int, size: int) -> None:
    decoded = jetengine(num, prompt, size, random.Random(seed))
    assert steps_within_blocks(decoded.step_map, prompt, size) == decoded.steps


@given(seeds, st.integers(1, 9), st.integers(1, 20), st.integers(1, 6), st.data())
def test_a_pass_that_goes_backwards_or_is_left_out_is_seen(
    seed: int, prompt: int, num: int, size: int, data: Any
) -> None:
    """Whatever replaces a number, the result is refused or a decoder could have written it."""
    step_map = jetengine(num, prompt, size, random.Random(seed)).step_map
    index = data.draw(st.integers(0, num - 1))
    step_map[index] = data.draw(st.integers(-2, max(step_map) + size + 2))
    try:
        steps = steps_within_blocks(step_map, prompt, size)
    except UnalignedError:
        return
    blocks: dict[int, list[tuple[int, int]]] = {}
    for i, pair in enumerate(zip(steps, step_map, strict=True)):
        blocks.setdefault((prompt + i) // size, []).append(pair)
    done = 0
    for number, pairs in blocks.items():
        assert [written - step for step, written in pairs] == [done + 1] * len(pairs)
        found = {step for step, _ in pairs}
        assert min(found) >= 0
        room = (number + 1) * size - max(prompt, number * size) - len(pairs)
        missing = set(range(max(found) + 1)) - found
        assert len(missing) <= room
        assert not missing or number == max(blocks)
        done = max(written for _, written in pairs)


@pytest.mark.parametrize(
    ("step_map", "reason", "detail"),
    [
        ([0, 1, 2, 3], "uncommitted", "token 0 has step 0, none below 1"),
        ([1, 2, -1, 3], "uncommitted", "token 2 has step -1"),
        ([2, 3, 4, 5], "blocks", "positions 0 to 3 has the steps 2, 3, 4, 5 after 0 passes"),
        ([1, 2, 4, 5], "blocks", "after 0 passes"),
        ([1, 2, 3, 10**30], "blocks", "after 0 passes"),
        ([1, 2, 3, 4, 4], "blocks", "positions 4 to 7 has the steps 4 after 4 passes"),
        ([1, 2, 3, 4, 9], "blocks", "positions 4 to 7 has the steps 9 after 4 passes"),
        # Steps that start anew in each block are another convention.
        ([1, 2, 3, 4, 1, 2, 3, 4], "blocks", "is block_size right"),
    ],
)
def test_step_maps_that_no_decoder_wrote(step_map: list[int], reason: str, detail: str) -> None:
    with pytest.raises(UnalignedError, match=detail) as error:
        steps_within_blocks(step_map, 0, 4)
    assert error.value.reason == reason


def test_the_last_block_may_lack_passes_only_of_what_it_lacks() -> None:
    assert steps_within_blocks([1, 2, 3, 4, 8], 0, 4) == [0, 1, 2, 3, 3]
    assert steps_within_blocks([1, 2, 3, 4], 0, 4) == [0, 1, 2, 3]


def test_a_wrong_block_size_or_prompt_shows(chars: LanguageModel) -> None:
    step_map = [4, 3, 2, 1, 8, 7, 6, 5]
    assert steps_within_blocks(step_map, 8, 4) == [3, 2, 1, 0] * 2
    for prompt, size in ((9, 4), (10, 4), (8, 3), (8, 2)):
        with pytest.raises(UnalignedError, match="the prompt the one that was decoded"):
            steps_within_blocks(step_map, prompt, size)


def test_what_follows_the_stop_token_is_kept_to_the_end_of_its_block(chars: LanguageModel) -> None:
    """Their decoder stops on <|endoftext|> alone; t3d's stops at the block of <|im_end|>."""
    text = "ab<|im_end|>c\n<|endoftext|>"
    row = trajectory(chars, "1234", text, [4, 3, 2, 1, 5, 6], 4)
    assert row.response_ids == chars.tokenizer.encode("ab<|im_end|>c")
    assert row.step_map == [3, 2, 1, 0]
    assert (row.num_response_tokens, row.finish_reason) == (3, "stop")


def test_a_response_that_ran_out_of_tokens_has_no_stop(chars: LanguageModel) -> None:
    row = trajectory(chars, "1234", "abcde", [1, 2, 3, 4, 6], 4)
    assert (row.num_response_tokens, row.finish_reason) == (5, "length")
    assert row.step_map == [0, 1, 2, 3, 1, -1, -1, -1]


def test_only_repetitions_of_the_final_stop_token_are_padding(chars: LanguageModel) -> None:
    encode = chars.tokenizer.encode
    end, pad = "<|im_end|>", "<|endoftext|>"
    assert align(chars, encode(f"ab{pad}{pad}{pad}"), [1, 2, 3]) == encode(f"ab{pad}")
    assert align(chars, encode(f"ab{pad}{pad}"), [1, 2, 3, 4]) == encode(f"ab{pad}{pad}")
    for text, num in [
        (f"ab{pad}{pad}{pad}", 2),
        (f"ab{pad}{pad}{pad}", 4),
        (f"ab{pad}a", 3),
        (f"ab{end}{pad}", 3),
        ("abc", 2),
        ("abc", 5),
        (f"ab{end}", 4),
    ]:
        with pytest.raises(UnalignedError, match=rf"tokens, its step map {num} entries$"):
            align(chars, encode(text), list(range(1, num + 1)))
    with pytest.raises(UnalignedError, match="may be a stop token that the text lacks"):
        align(chars, encode("abc"), [1, 2, 3, 4])
