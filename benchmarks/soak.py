"""Thousands of requests of mixed lengths through a small cache, some of them cancelled.

None may be lost or mixed up, and memory must not grow: `python -m benchmarks.soak`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from t3d.core.files import write_json
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Completion, Request
from t3d.testing import tiny

MASK = 63
SETTINGS = [
    DecodingConfig(4, 1, temperature=0.0),
    DecodingConfig(4, 4, "low_confidence_dynamic", 0.4, temperature=0.7),
    DecodingConfig(8, 4, "entropy_bounded", entropy_bound=1.0, temperature=1.0, top_k=8),
    DecodingConfig(16, 6, "ancestral", temperature=1.0),
]
GROWTH = 0.05
"""Share by which memory may grow after a fifth of the requests."""


def resident_mib() -> float:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def make_request(index: int) -> Request:
    """The request of a number; every one has settings of its own."""
    draw = random.Random(index)
    prompt = [draw.randrange(MASK) for _ in range(draw.randint(1, 80))]
    return Request(prompt, index, draw.randint(1, 48), draw.choice(SETTINGS))


@dataclass
class Outcome:
    """What became of the requests, by number."""

    completed: set[int] = field(default_factory=set)
    kept: dict[int, Completion] = field(default_factory=dict)
    """Completions of the sample alone, so that memory stays the engine's own."""
    num_tokens: int = 0
    cancelled: set[int] = field(default_factory=set)
    too_late: int = 0
    """Asked to be cancelled once they were done."""
    num_events: int = 0
    wrong_events: int = 0
    """Requests whose events do not add up to their completion."""
    memory: list[float] = field(default_factory=list)
    """MiB, the k-th of 40 when k / 40 of the requests were submitted."""
    seconds: float = 0.0


def make_decoder(batch_size: int, cache_tokens: int | None) -> BlockDecoder:
    return BlockDecoder(
        tiny(),
        SETTINGS[0],
        mask_token_id=MASK,
        stop_token_ids=(3, 30, 44),
        batch_size=batch_size,
        prefill_chunk=64,
        cache_tokens=cache_tokens,
    )


def soak(num: int, cancelled_share: float, num_kept: int) -> Outcome:
    """Keep a queue of requests before the engine until all came and went."""
    sample = set(random.Random(1).sample(range(num), min(num_kept, num)))
    decoder, draw, out = make_decoder(16, 1024), random.Random(0), Outcome()
    numbers: dict[int, int] = {}
    doomed: dict[int, int] = {}  # number -> round
    told: dict[int, dict[int, int]] = {}
    started, submitted, rounds = time.perf_counter(), 0, 0
    while submitted < num or decoder.num_unfinished:
        while submitted < num and decoder.num_unfinished < 24:
            id = decoder.submit(make_request(submitted))
            numbers[id], told[id] = submitted, {}
            if draw.random() < cancelled_share:
                doomed[id] = rounds + draw.randint(0, 20)
            submitted += 1
            if submitted * 40 // num > len(out.memory):
                out.memory.append(resident_mib())
        for id in [id for id, at in doomed.items() if at <= rounds]:
            del doomed[id]
            if decoder.cancel(id):
                out.cancelled.add(numbers.pop(id))
                del told[id]
            else:
                out.too_late += 1
        for event in decoder.step():
            out.num_events += 1
            told[event.id] |= dict(zip(event.places, event.token_ids, strict=True))
            if event.completion is not None:
                number, tokens = numbers.pop(event.id), told.pop(event.id)
                shown = [tokens.get(i, MASK) for i in range(len(event.completion.response_ids))]
                out.wrong_events += shown != event.completion.response_ids
                assert number not in out.completed
                out.completed.add(number)
                out.num_tokens += event.completion.num_response_tokens
                if number in sample:
                    out.kept[number] = event.completion
        rounds += 1
    out.seconds = time.perf_counter() - started
    return out


def mixed_up(kept: dict[int, Completion]) -> int:
    """How many completions differ from what their requests decode to alone."""
    alone, wrong = make_decoder(1, None), 0
    for number, completion in kept.items():
        [expected] = alone.decode([make_request(number)])
        # Sums over padded batches may round otherwise.
        same = torch.allclose(
            torch.tensor(completion.log_probs), torch.tensor(expected.log_probs), atol=1e-6
        )
        wrong += not same or replace(completion, log_probs=expected.log_probs) != expected
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="at least 40")
    parser.add_argument("--cancelled", type=float, default=0.05, help="share of the requests")
    parser.add_argument("--sample", type=int, default=200, help="requests decoded again alone")
    parser.add_argument("--output", type=Path, help="where the numbers go as JSON")
    options = parser.parse_args()
    outcome = soak(options.requests, options.cancelled, options.sample)
    early, late = outcome.memory[len(outcome.memory) // 5 - 1], outcome.memory[-1]
    lost = set(range(options.requests)) - outcome.completed - outcome.cancelled
    wrong = mixed_up(outcome.kept)
    numbers = {
        "requests": options.requests,
        "completed": len(outcome.completed),
        "cancelled": len(outcome.cancelled),
        "cancelled too late": outcome.too_late,
        "lost": len(lost),
        "checked alone": len(outcome.kept),
        "mixed up": wrong,
        "events": outcome.num_events,
        "events that do not add up": outcome.wrong_events,
        "MiB at 20 %": round(early, 1),
        "MiB at 100 %": round(late, 1),
        "seconds": round(outcome.seconds, 1),
        "tokens a second": round(outcome.num_tokens / outcome.seconds, 1),
    }
    failed = bool(lost) or wrong > 0 or outcome.wrong_events > 0 or late > early * (1 + GROWTH)
    table = Table("what", "number", title="soak: FAILED" if failed else "soak: ok")
    for name, number in numbers.items():
        table.add_row(name, f"{number:,}")
    Console(width=100).print(table)
    print(f"| {' | '.join(numbers)} |\n|{'---|' * len(numbers)}")
    print(f"| {' | '.join(f'{number:,}' for number in numbers.values())} |")
    if options.output is not None:
        write_json(options.output, {**numbers, "memory": outcome.memory})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
