"""What training computes is what the decoder computed, at every state that it visited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_row
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Completion, Request
from t3d.decoding.rollout import record
from t3d.models.attention import attention_mask
from t3d.noising import NoiserInput, TrajectoryState, View, Vocabulary
from t3d.tasks import Example
from t3d.testing import tiny
from t3d.training.forward import assemble

MASK = 49
STOPS = (3, 19, 30)
MODEL = tiny(vocab_size=50)
State = tuple[int, list[int]]
PROMPT_LENGTHS = [1, 3, 4, 6, 8, 11]


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    return [
        Request(torch.randint(0, MASK, (length,), generator=generator).tolist(), seed=length)
        for length in PROMPT_LENGTHS
    ]


def settings(block_size: int, **changes: Any) -> DecodingConfig:
    steps = max(1, block_size * 3 // 4)
    given = {"block_size": block_size, "denoising_steps": steps, "temperature": 1.0}
    return DecodingConfig(**{**given, "max_new_tokens": 10, **changes})


def trajectory(request: Request, completion: Completion, block_size: int) -> Trajectory:
    decoding = DecodingConfig(block_size=block_size, denoising_steps=1)
    return record(Example("p", ""), request.prompt_ids, completion, decoding)


def decoded(config: DecodingConfig) -> tuple[TrajectoryBatch, list[list[State]]]:
    """Decoded sequences and, for each, every state that the decoder was in."""
    rows, visited = [], []
    for index, request in enumerate(requests()):
        states: list[State] = []
        completion = decode_one(
            MODEL,
            request,
            config,
            mask_token_id=MASK,
            stop_token_ids=STOPS,
            on_state=lambda start, ids, states=states: states.append((start, ids)),
        )
        rows.append(training_row(trajectory(request, completion, config.block_size), index))
        visited.append(states)
    return TrajectoryBatch.collate(rows, pad_token_id=0), visited


@torch.inference_mode()
def plain_logits(prefix: list[int], state: list[int], layout: BlockLayout) -> Tensor:
    """[S, V] of a block, from a block-causal pass over everything up to its end."""
    ids = torch.tensor([prefix + state])
    grid = layout.clean(torch.tensor([ids.shape[1]]), ids.shape[1])
    mask = attention_mask("sdpa", grid, grid, torch.float64)
    return MODEL(ids, mask).logits[0, len(prefix) :]


@torch.no_grad()
def training_logits(
    batch: TrajectoryBatch, views: list[View], layout: BlockLayout
) -> dict[tuple[int, int, int], Tensor]:
    """(view, sequence, position) -> logits [V], from one pass over [x0 || x_t ...]."""
    inputs, tokens = assemble(batch, views, layout, "sdpa", torch.float64)
    logits = MODEL(
        inputs.input_ids, inputs.attention_mask, inputs.position_ids, select=inputs.select
    ).logits
    assert logits.shape == (len(tokens.target), 50)
    place = torch.stack([tokens.view, tokens.sequence, tokens.position], 1)
    return {(v, b, p): row for (v, b, p), row in zip(place.tolist(), logits, strict=True)}


def view_of(batch: TrajectoryBatch, chosen: list[list[State]], layout: BlockLayout) -> View:
    """x_t in the given states; loss wherever they are masked."""
    width = layout.ceil(batch.input_ids.shape[1])
    xt = torch.full((len(chosen), width), MASK)
    loss = torch.zeros(xt.shape, dtype=torch.bool)
    for row, states in enumerate(chosen):
        for start, state in states:
            xt[row, start : start + layout.block_size] = torch.tensor(state)
            loss[row, start : start + layout.block_size] = torch.tensor(state) == MASK
    return View(xt, loss, torch.ones(xt.shape), loss)


def pick(states: list[State], number: int) -> list[State]:
    """The state before step `number` of every block, or the last one that a block has."""
    blocks: dict[int, list[State]] = {}
    for state in states:
        blocks.setdefault(state[0], []).append(state)
    return [block[min(number, len(block) - 1)] for block in blocks.values()]


@pytest.mark.parametrize("block_size", [1, 4, 8])
def test_training_logits_are_the_decoders_at_every_visited_state(block_size: int):
    """In padded batches, two views side by side, prompts ending anywhere in a block."""
    layout = BlockLayout(block_size)
    batch, visited = decoded(settings(block_size))
    assert len(batch.length.unique()) > 1 or block_size == 8
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    for number in range(block_size):
        # The second view is in other states than the first.
        choices = [[pick(states, n) for states in visited] for n in (number, number + 1)]
        views = [view_of(batch, choice, layout) for choice in choices]
        logits = training_logits(batch, views, layout)
        for view, choice in enumerate(choices):
            for sequence, states in enumerate(choice):
                ids = batch.input_ids[sequence].tolist()
                for start, state in states:
                    expected = plain_logits(ids[:start], state, layout)
                    masked = [i for i, token in enumerate(state) if token == MASK]
                    actual = [logits.pop((view, sequence, start + i)) for i in masked]
                    torch.testing.assert_close(
                        torch.stack(actual), expected[masked], rtol=0, atol=1e-9
                    )
                    seen.add((sequence, start, tuple(state)))
        assert not logits
    expected_states = {(i, start, tuple(ids)) for i, s in enumerate(visited) for start, ids in s}
    assert seen == expected_states


@pytest.mark.parametrize("block_size", [4, 8])
def test_the_recorded_log_probs_are_those_of_the_training_forward(block_size: int):
    """The cached engine's log-probabilities, recomputed from the state before each commit."""
    layout = BlockLayout(block_size)
    decoder = BlockDecoder(
        MODEL,
        settings(block_size),
        mask_token_id=MASK,
        stop_token_ids=STOPS,
        banned_token_ids=(),
        batch_size=4,
    )
    items = [
        trajectory(request, completion, block_size)
        for request, completion in zip(requests(), decoder.decode(requests()), strict=True)
    ]
    rows = [training_row(item, index) for index, item in enumerate(items)]
    batch = TrajectoryBatch.collate(rows, pad_token_id=0)
    num_compared = 0
    for step in range(block_size):
        # The state before `step`: what was committed in it or later is masked.
        xt = torch.full((len(items), layout.ceil(batch.input_ids.shape[1])), MASK)
        loss = torch.zeros(xt.shape, dtype=torch.bool)
        for row, item in enumerate(items):
            prompt = len(item.prompt_ids)
            xt[row, : len(rows[row]["input_ids"])] = torch.tensor(rows[row]["input_ids"])
            for i, committed in enumerate(item.step_map):
                if committed < 0 or committed >= step:
                    xt[row, prompt + i] = MASK
                loss[row, prompt + i] = committed == step
        logits = training_logits(batch, [View(xt, loss, torch.ones(xt.shape), loss)], layout)
        for (_, sequence, position), values in logits.items():
            i = position - len(items[sequence].prompt_ids)
            # The mask token can never be generated.
            values[MASK] = -torch.inf
            actual = values.log_softmax(-1)[items[sequence].response_ids[i]]
            assert float(actual) == pytest.approx(items[sequence].log_probs[i], abs=1e-6)
            num_compared += 1
    assert num_compared == sum(step >= 0 for item in items for step in item.step_map)


def test_a_blocks_logits_do_not_depend_on_how_other_blocks_are_noised():
    """Also at a training block that is not the decoder's."""
    layout, vocabulary = BlockLayout(8), Vocabulary(50, MASK, 0, 50)
    batch, _ = decoded(settings(4, max_new_tokens=20))
    keys = torch.arange(len(batch.length))
    noiser = TrajectoryState(levels=(1.0,), random_share=0.2)
    noised = NoiserInput(batch, layout, keys, vocabulary, 0.0)
    [full] = noiser(noised)
    [other] = TrajectoryState(levels=(0.25,))(noised)
    start = batch.prompt_length // 8 * 8
    first = torch.arange(full.xt.shape[1]) < start[:, None] + 8
    mixed = View(
        torch.where(first, full.xt, other.xt),
        full.loss_mask & first,
        full.weight,
        full.masked,
    )
    expected = training_logits(batch, [full], layout)
    logits = training_logits(batch, [mixed], layout)
    assert 0 < len(logits) < len(expected)
    for place, values in logits.items():
        torch.testing.assert_close(values, expected[place], rtol=0, atol=1e-12)
