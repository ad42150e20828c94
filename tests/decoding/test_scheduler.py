"""The scheduler without a model: who runs where, what waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Request
from t3d.decoding.scheduler import Scheduler
from t3d.decoding.sequence import Sequence

CONFIGS = [DecodingConfig(4, 4), DecodingConfig(8, 1)]


def sequence(id: int, prompt_length: int, num_new: int, config: DecodingConfig) -> Sequence:
    request = Request([1] * prompt_length, max_new_tokens=num_new)
    size = config.block_size
    end = -(-(prompt_length + num_new) // size) * size
    ids = request.prompt_ids + [9] * (end - prompt_length)
    return Sequence(id, request, config, ids, mask_token_id=9)


def scheduler(
    batch_size: int = 3,
    *,
    fused: bool = True,
    prefill_chunk: int = 8192,
    cache_tokens: int | None = None,
) -> Scheduler:
    return Scheduler(
        batch_size=batch_size,
        fused=fused,
        prefill_chunk=prefill_chunk,
        cache_tokens=cache_tokens,
    )


def advance(plan: Scheduler) -> list[Sequence]:
    """Take every sequence a pass further; the finished ones."""
    finished = []
    for work in plan.next_pass():
        current = work.sequence
        if work.states:
            current.commit([(position, 5, -1.0) for position in current.masked[:2]])
            if current.finished(frozenset()) is not None:
                finished.append(current)
        else:
            current.store(work.stop, work.width)
    return finished


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 12), st.sampled_from(CONFIGS)),
        min_size=1,
        max_size=9,
    ),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([1, 6, 20, 1000]),
    st.sampled_from([None, 48, 100]),
)
def test_everybody_finishes_in_a_row_of_their_own_and_within_bounds(
    lengths: list[tuple[int, int, DecodingConfig]],
    batch_size: int,
    fused: bool,
    prefill_chunk: int,
    cache_tokens: int | None,
) -> None:
    plan = scheduler(
        batch_size, fused=fused, prefill_chunk=prefill_chunk, cache_tokens=cache_tokens
    )
    everybody = [sequence(i, *length) for i, length in enumerate(lengths)]
    for one in everybody:
        plan.submit(one)
    done: list[Sequence] = []
    admitted: list[int] = []
    while len(done) < len(everybody):
        plan.admit()
        running = plan.running
        admitted += [s.id for s in running if s.id not in admitted]
        assert [s.row for s in running] == list(range(len(running)))
        assert 1 <= len(running) <= min(batch_size, plan.num_rows)
        assert max(len(s.ids) for s in running) <= plan.num_slots
        assert cache_tokens is None or plan.num_rows * plan.num_slots <= cache_tokens
        works = plan.next_pass()
        assert len({work.sequence.id for work in works}) == len(works)
        # Only prompts ever wait, and never all of them.
        idle = [s for s in running if s not in [work.sequence for work in works]]
        assert all(s.num_cached < s.prefix for s in idle)
        prefill = [work for work in works if work.first < work.sequence.prefix]
        stored = sum(min(w.stop, w.sequence.prefix) - w.first for w in prefill)
        assert stored <= prefill_chunk or len(prefill) == 1
        assert prefill or not idle
        for work in works:
            size = work.sequence.config.block_size
            assert work.first == work.sequence.num_cached
            assert work.first % size == 0 == work.stop % size
            if work.states:
                assert work.stop == work.sequence.end
                assert fused or work.width == size
            else:
                assert work.stop <= work.sequence.start
        for one in advance(plan):
            source = plan.release(one)
            assert source is None or plan.running[one.row].row == one.row != source
            done.append(one)
    # In order of arrival.
    assert admitted == sorted(admitted)
    assert not plan.running
    assert not plan.waiting


def test_a_long_request_waits_for_room_and_the_next_ones_behind_it() -> None:
    plan = scheduler(cache_tokens=48)
    for i, length in enumerate((8, 28, 8)):
        plan.submit(sequence(i, length, 4, CONFIGS[0]))
    plan.admit()
    assert [s.id for s in plan.running] == [0]  # two rows of 32 slots are more than 48
    while not (finished := advance(plan)):
        pass
    plan.release(finished[0])
    plan.admit()
    assert [s.id for s in plan.running] == [1]
    assert (plan.num_rows, plan.num_slots) == (1, 32)


def test_what_never_fits_is_refused_with_its_numbers() -> None:
    plan = scheduler(cache_tokens=31)
    with pytest.raises(ValueError, match=r"request 7: its 26 .* 6 .* 32 cache slots.*'s 31; raise"):
        plan.submit(sequence(7, 26, 4, CONFIGS[0]))
    plan.submit(sequence(8, 20, 8, CONFIGS[0]))


def test_prompts_in_chunks_leave_room_for_others() -> None:
    plan = scheduler(prefill_chunk=8)
    first, second = sequence(0, 4, 16, CONFIGS[0]), sequence(1, 30, 4, CONFIGS[0])
    for one in (first, second):
        plan.submit(one)
    plan.admit()
    spans = []
    for _ in range(5):
        works = {w.sequence.id: w for w in plan.next_pass()}
        spans.append({i: (w.first, w.stop, bool(w.states)) for i, w in works.items()})
        advance(plan)
    assert [span[0] for span in spans] == [
        (0, 8, True),
        (4, 8, True),
        (4, 12, True),
        (8, 12, True),
        (8, 16, True),
    ]
    # 4 tokens of the first prompt leave less than a chunk of 8, so the second one waits.
    assert [span.get(1) for span in spans] == [
        None,
        (0, 8, False),
        (8, 16, False),
        (16, 24, False),
        (24, 32, True),
    ]
