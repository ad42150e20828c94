"""How many passes verified decoding takes; that it changes no output is an invariant
(`tests/invariants/test_decoding.py`)."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from t3d.core.blocks import BlockLayout
from t3d.core.rng import fold, uniform
from t3d.decoding.build import make_decoder
from t3d.decoding.config import DecodingConfig, Remasking
from t3d.decoding.drafting import _rank_sets
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import _choose, _entropy, decode_one
from t3d.decoding.request import Completion, Request
from t3d.decoding.sampling import sample
from t3d.models.attention import attention_mask
from t3d.models.loading import from_pretrained
from t3d.models.sdar import SDARForCausalLM
from t3d.testing import tiny

MASK, STOPS = 49, (3, 19, 30, 44)
MODEL = tiny(vocab_size=50)


def decode(
    config: DecodingConfig,
    request: Request,
    model: SDARForCausalLM = MODEL,
    stop_token_ids: tuple[int, ...] = STOPS,
) -> Completion:
    decoder = BlockDecoder(
        model, config, mask_token_id=MASK, stop_token_ids=stop_token_ids, batch_size=1
    )
    return decoder.decode([request])[0]


def aloof() -> SDARForCausalLM:
    """A model whose tokens do not see each other, so that it foresees all of its own steps."""
    model = tiny(vocab_size=50)
    for name, weight in model.named_parameters():
        if "o_proj" in name:
            nn.init.zeros_(weight)
    return model


@pytest.mark.parametrize("remasking", get_args(Remasking))
@pytest.mark.parametrize(("block_size", "num_steps"), [(4, 4), (4, 2), (8, 8), (8, 3)])
def test_a_model_that_foresees_its_steps_takes_a_pass_a_block_and_one_more(
    block_size: int, num_steps: int, remasking: Remasking
) -> None:
    # Random tokens to start from, as its predictions at mask tokens would all be equal.
    config = DecodingConfig(
        block_size,
        num_steps,
        remasking,
        max_new_tokens=24,
        temperature=0.7,
        random_share=1.0,
        draft_states=8,
    )
    done = decode(config, Request([1, 2, 3], 5), aloof(), ())
    num_blocks = (3 + len(done.response_ids)) // block_size
    plain = decode(replace(config, draft_states=1), Request([1, 2, 3], 5), aloof(), ())
    assert done.response_ids == plain.response_ids
    assert done.passes.denoising == num_blocks + 1 < plain.passes.denoising
    # Otherwise other orders are drafted, too.
    assert not config.order_is_known or done.passes.drafted == done.passes.accepted


def predict(
    config: DecodingConfig, request: Request, masked: list[int], logits: torch.Tensor, step: int
) -> dict[int, int]:
    """What a step commits, by position, as the oracle chooses from these logits."""
    keys = fold(torch.tensor(request.seed), torch.tensor(masked), step)
    found = sample(logits, uniform(keys), torch.tensor([MASK]), config)
    chosen = _choose(
        config,
        step,
        dict(zip(masked, found.confidence.tolist(), strict=True)),
        dict(zip(masked, uniform(fold(keys, 1)).tolist(), strict=True)),
        {p: _entropy(row, (MASK,)) for p, row in zip(masked, logits.tolist(), strict=True)},
    )
    return {p: int(token) for p, token in zip(masked, found.ids, strict=True) if p in chosen}


def slow_passes(config: DecodingConfig, request: Request) -> int:
    """Passes of chains of drafts, counted without a cache, one state after the other."""
    size, layout = config.block_size, BlockLayout(config.block_size)
    states: list[tuple[int, list[int]]] = []
    true = decode_one(
        MODEL,
        request,
        config,
        mask_token_id=MASK,
        stop_token_ids=STOPS,
        on_state=lambda start, ids: states.append((start, list(ids))),
    )
    step_of = [-1] * len(request.prompt_ids) + true.step_map
    ids_of = request.prompt_ids + true.response_ids

    def logits_at(start: int, ids: list[int]) -> torch.Tensor:
        whole = ids_of[:start] + ids
        grid = layout.clean(torch.tensor([len(whole)]), len(whole))
        mask = attention_mask("sdpa", grid, grid, MODEL.dtype)
        return MODEL(torch.tensor([whole]), mask).logits[0]

    passes, number = 0, 0
    carried: list[tuple[int, list[int]]] = []
    while number < len(states):
        passes += 1
        last = states[number]
        number += 1
        while number < len(states) and states[number] in carried:
            last = states[number]
            number += 1
        carried = []
        if number == len(states) or states[number][0] != last[0]:
            continue
        # Draft from the logits of the last state that the pass saw.
        start, ids = states[number]
        logits = logits_at(*last)
        step = sum(1 for other, _ in states[:number] if other == start)
        block = list(ids)
        masked = [
            p
            for p in range(start, start + size)
            if p >= len(request.prompt_ids) and not 0 <= step_of[p] < step
        ]
        while masked and len(carried) < config.most_states:
            chosen = predict(config, request, masked, logits[masked], step)
            for p, token in chosen.items():
                block[p - start] = token
            masked = [p for p in masked if p not in chosen]
            step += 1
            carried.append((start, list(block)))
        if masked:
            carried = carried[: config.most_states - 1]
        elif any(t in STOPS for t in block[max(len(request.prompt_ids) - start, 0) :]):
            carried.pop()
        else:
            following = next((s for s in states if s[0] == start + size), None)
            if following and ids_of[start : start + size] == block:
                carried.append(following)
    return passes


@settings(max_examples=60)
@given(
    st.sampled_from([(4, 4), (4, 2), (8, 8), (8, 5)]),
    st.sampled_from(get_args(Remasking)),
    st.sampled_from([0.0, 0.7]),
    st.integers(2, 8),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_passes_are_those_of_chains_counted_state_by_state(
    shape: tuple[int, int],
    remasking: Remasking,
    temperature: float,
    draft_states: int,
    prompt_length: int,
    seed: int,
) -> None:
    config = DecodingConfig(
        *shape,
        remasking,
        confidence_threshold=0.4,
        entropy_bound=1.0,
        temperature=temperature,
        max_new_tokens=16,
        draft_states=2,
    )
    if config.order_is_known:
        # Otherwise more than two states may be of other orders.
        config = replace(config, draft_states=draft_states)
    request = Request([(7 * i + seed) % 49 for i in range(prompt_length)], seed)
    assert decode(config, request).passes.denoising == slow_passes(config, request)


@given(st.integers(1, 7), st.data())
def test_sets_of_ranks_are_all_sets_with_the_drafted_order_first(
    num: int, data: st.DataObject
) -> None:
    sizes = tuple(sorted(data.draw(st.sets(st.integers(1, num), min_size=1))))
    found = _rank_sets(num, sizes, 1 << num)
    assert found[: len(sizes)] == [tuple(range(size)) for size in sizes]
    assert sorted(found) == sorted(s for size in sizes for s in combinations(range(num), size))
    moved = [sum(ranks) - sum(range(len(ranks))) for ranks in found]
    assert moved == sorted(moved)
    assert _rank_sets(num, sizes, 3) == found[:3]


def test_other_orders_save_passes() -> None:
    requests = [Request([i, i + 1, i + 2], i) for i in range(20)]
    config = DecodingConfig(temperature=0.0, max_new_tokens=24, draft_states=4)
    chains = sum(decode(config, request).passes.denoising for request in requests)
    orders = replace(config, draft_states=15)
    assert sum(decode(orders, request).passes.denoising for request in requests) < chains


def test_a_model_that_drafts_has_as_many_embeddings(tmp_path: Path) -> None:
    lm, wide = from_pretrained("mini_teacher"), from_pretrained("mini_teacher")
    wide.model.resize_token_embeddings(lm.model.config.vocab_size + 8)
    wide.save(tmp_path)
    config = DecodingConfig(draft_states=2, draft_model=str(tmp_path))
    with pytest.raises(ValueError, match="other embeddings than mini_teacher; give a checkpoint"):
        make_decoder(lm, config, 1)
