"""Passes that are launched before the last one is read. That they decode the same is tested in
`tests/invariants/test_decoding.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from t3d.decoding import denoising
from t3d.decoding.ahead import Outcome
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Request
from t3d.decoding.runner import Runner
from t3d.testing import tiny

MODEL = tiny(vocab_size=50, max_position_embeddings=128)
CONFIG = DecodingConfig(block_size=4, denoising_steps=2, temperature=0.0, max_new_tokens=12)


def decoder(ahead: bool | None, **options: object) -> BlockDecoder:
    given = {"mask_token_id": 49, "stop_token_ids": (), "batch_size": 4, "ahead": ahead, **options}
    return BlockDecoder(MODEL, CONFIG, **given)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the host does: `launch` a pass, `read` one."""
    seen: list[str] = []
    run, fetch = Runner.run, denoising.fetch

    def launch(self: Runner, *args: object, **options: object) -> object:
        seen.append("launch")
        return run(self, *args, **options)  # type: ignore[arg-type]

    def read(values: Tensor) -> Callable[[], list[list[float]]]:
        found = fetch(values)

        def wait() -> list[list[float]]:
            seen.append("read")
            return found()

        return wait

    monkeypatch.setattr(Runner, "run", launch)
    monkeypatch.setattr(denoising, "fetch", read)
    return seen


def test_a_pass_is_read_while_the_next_one_runs(order: list[str]) -> None:
    decoder(True).decode([Request([1, 2, 3, 4])])
    # Three blocks in two steps each; how many tokens are left is known without reading.
    assert order == ["launch"] + ["launch", "read"] * 5 + ["read"]


def test_on_a_cpu_a_pass_is_read_before_the_next_one(order: list[str]) -> None:
    decoder(None).decode([Request([1, 2, 3, 4])])
    assert order == ["launch", "read"] * 6


def test_a_stop_is_found_a_pass_late(order: list[str]) -> None:
    [free] = decoder(False).decode([Request([1, 2, 3, 4])])
    stop = {free.response_ids[3]}
    [expected] = decoder(False, stop_token_ids=stop).decode([Request([1, 2, 3, 4])])
    assert expected.finish_reason == "stop"
    order.clear()
    [found] = decoder(True, stop_token_ids=stop).decode([Request([1, 2, 3, 4])])
    assert (found, found.passes.tokens) == (expected, expected.passes.tokens)
    # The pass that began before is launched in vain.
    assert order.count("launch") == expected.passes.total + 1


@pytest.mark.parametrize(
    "other",
    [
        Request([5], config=replace(CONFIG, remasking="low_confidence_dynamic")),
        Request([5], config=replace(CONFIG, remasking="entropy_bounded")),
        Request([5], config=replace(CONFIG, draft_states=2)),
        Request([5], config=replace(CONFIG, denoising_steps=4)),
        Request([5], num_alternatives=2),
    ],
)
def test_a_request_whose_next_pass_is_unknown_makes_all_wait(
    other: Request, order: list[str]
) -> None:
    engine = decoder(True)
    first = engine.submit(Request([1, 2, 3, 4]))
    assert engine.step() == []
    assert order == ["launch"]
    second = engine.submit(other)
    # What runs is read first, and only then the other request begins.
    [event] = engine.step()
    assert (event.id, order) == (first, ["launch", "read"])
    assert {event.id for event in engine.step()} == {first, second}
    engine.cancel(second)
    while engine.num_unfinished:
        engine.step()
    assert order[-3:] == ["launch", "read", "read"]


def test_cancelled_requests_leave_nothing_behind() -> None:
    """The pass that runs for them is read when others decode, who take their numbers."""
    engine, requests = decoder(True), [Request([1, 2, 3]), Request([4, 5])]
    expected = decoder(False).decode(requests)
    for request in reversed(requests):
        engine.submit(request)
    engine.step()
    engine.step()
    assert engine.cancel(0)
    assert engine.cancel(1)
    assert engine.decode(requests) == expected


def test_an_outcome_is_what_the_next_pass_starts_from() -> None:
    ids, select = torch.tensor([7, 9, 9, 8, 9]), torch.tensor([1, 2, 4])
    outcome = Outcome.of(ids, select, torch.tensor([3, 4, 5]), torch.tensor([True, False, True]))
    assert outcome.ids.tolist() == [7, 3, 9, 8, 5]
    filled = outcome.fill(torch.tensor([20, 21, 22]), torch.tensor([4, 2, 7]))
    assert filled.tolist() == [5, 9, 22]
    doubtful = torch.tensor([1, 2, 4, -1, -1])
    assert outcome.still_masked(doubtful, 3).tolist() == [1, 3, 4]
