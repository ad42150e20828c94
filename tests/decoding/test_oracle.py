"""The oracle against decoding by hand, and replay against what it visited."""

from __future__ import annotations

import torch

from t3d.decoding.config import DecodingConfig
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Completion, Request
from t3d.testing import tiny

MODEL = tiny(vocab_size=50, block_size=2)
MASK = 49
GREEDY = DecodingConfig(block_size=2, denoising_steps=2, temperature=0.0, max_new_tokens=3)


def decode(request: Request, config: DecodingConfig, stops: tuple[int, ...] = ()) -> Completion:
    return decode_one(MODEL, request, config, mask_token_id=MASK, stop_token_ids=stops)


@torch.inference_mode()
def log_probs(ids: list[int]) -> torch.Tensor:
    logits = MODEL(torch.tensor([ids])).logits[0]
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)


def test_a_greedy_decode_by_hand() -> None:
    ids = [7, 8, 9]
    completion = decode(Request(ids), GREEDY)

    # Block [2, 3]: the prompt's remainder is visible, so one step finishes it.
    now = log_probs([*ids, MASK])
    ids = [*ids, int(now[3].argmax())]
    steps, recorded = [0], [float(now[3].max())]
    # Block [4, 5]: the more confident position first.
    now = log_probs([*ids, MASK, MASK])
    first = 4 if now[4].max() >= now[5].max() else 5
    block = {first: int(now[first].argmax())}
    later = log_probs([*ids, *(block.get(p, MASK) for p in (4, 5))])
    second = 9 - first
    block[second] = int(later[second].argmax())
    steps += [0, 1] if first == 4 else [1, 0]
    values = {first: float(now[first].max()), second: float(later[second].max())}
    recorded += [values[4], values[5]]

    assert completion.response_ids == [ids[3], block[4], block[5]]
    assert completion.step_map == steps
    torch.testing.assert_close(completion.log_probs, recorded)
    assert completion.finish_reason == "length"
    assert completion.num_response_tokens == 3
    assert completion.passes.denoising == 3


def test_sampling_depends_on_the_seed_and_only_on_it() -> None:
    config = DecodingConfig(temperature=1.0, max_new_tokens=16)
    texts = [tuple(decode(Request([1, 2], seed), config).response_ids) for seed in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]


def test_states_are_seen_before_each_step() -> None:
    seen: list[tuple[int, list[int]]] = []
    completion = decode_one(
        MODEL,
        Request([7, 8, 9]),
        GREEDY,
        mask_token_id=MASK,
        stop_token_ids=(),
        on_state=lambda start, ids: seen.append((start, ids)),
    )
    a, b, c = completion.response_ids
    half = [b, MASK] if completion.step_map[1] == 0 else [MASK, c]
    assert seen == [(2, [9, MASK]), (4, [MASK, MASK]), (4, half)]
    assert a != MASK
