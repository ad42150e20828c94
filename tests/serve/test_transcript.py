"""A response becomes the same text however its commits come."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

import t3d
from t3d.decoding.request import Event, Passes
from t3d.models.loading import LanguageModel
from t3d.serve.transcript import Transcript

STOP = 2


@cache
def model() -> LanguageModel:
    return t3d.from_pretrained("mini_teacher")


def events(order: list[tuple[int, int]], sizes: list[int]) -> list[Event]:
    """Commits of (place, token) in groups."""
    found, done = [], 0
    for step, size in enumerate([*sizes, len(order)]):
        group = sorted(order[done : done + size])
        done += size
        places, tokens = [place for place, _ in group], [token for _, token in group]
        zeros, none = [0.0] * len(group), [{} for _ in group]
        found.append(Event(0, step, places, tokens, zeros, none, Passes()))
    return [event for event in found if event.places]


# Bytes, which make half characters, are the first tokens after the control tokens.
TOKENS = st.lists(st.one_of(st.integers(3, 258), st.integers(3, 590)), min_size=1, max_size=24)


@st.composite
def commits(draw: st.DrawFn) -> tuple[list[int], list[Event]]:
    tokens = draw(TOKENS)
    order = draw(st.permutations(list(enumerate(tokens))))
    return tokens, events(order, draw(st.lists(st.integers(1, 5), max_size=12)))


def read(tokens: list[int], told: list[Event], stops: list[str]) -> tuple[str, Transcript]:
    transcript = Transcript(model().text, (STOP, 0), stops, len(tokens))
    text = ""
    for event in told:
        if transcript.finish_reason is None:
            text += transcript.take(event)
    return text, transcript


@given(commits(), st.booleans())
def test_the_pieces_make_the_text(case: tuple[list[int], list[Event]], ends: bool) -> None:
    tokens, told = case
    place = len(tokens) // 2
    if ends:
        tokens = [*tokens[:place], STOP, *tokens[place + 1 :]]
        told = [
            Event(
                0,
                event.step,
                event.places,
                [tokens[p] for p in event.places],
                event.log_probs,
                event.alternatives,
                Passes(),
            )
            for event in told
        ]
    text, transcript = read(tokens, told, [])
    assert text == model().decode(tokens)
    assert transcript.finish_reason == ("stop" if ends else "length")
    assert [t.id for t in transcript.tokens] == (tokens[: place + 1] if ends else tokens)


@given(commits(), st.data())
def test_a_stop_string_ends_the_text_before_itself(
    case: tuple[list[int], list[Event]], data: st.DataObject
) -> None:
    tokens, told = case
    whole = model().decode(tokens)
    stops = []
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, max(0, len(whole) - 1)))
        stops.append(whole[start : start + data.draw(st.integers(1, 4))] or "x")
    # Half characters have no text of their own to stop at.
    stops = [stop for stop in stops if "\ufffd" not in stop] or ["nosuch"]
    text, transcript = read(tokens, told, stops)
    one_by_one, _ = read(tokens, events(list(enumerate(tokens)), [1] * len(tokens)), stops)
    assert text == one_by_one
    if not any(stop in whole for stop in stops):
        assert (text, transcript.finish_reason) == (whole, "length")
        return
    assert transcript.finish_reason == "stop"
    assert not any(stop in text for stop in stops)
    assert any(whole.startswith(text + stop) for stop in stops)


@given(commits())
def test_text_is_told_once_it_is_final_and_not_before(
    case: tuple[list[int], list[Event]],
) -> None:
    tokens, told = case
    transcript = Transcript(model().text, (STOP, 0), [], len(tokens))
    text, known = "", set[int]()
    for event in told:
        text += transcript.take(event)
        known |= {*event.places}
        num = next(i for i in range(len(tokens) + 1) if i not in known)
        final = model().text(tokens[:num])
        assert final.startswith(text)
        # What is held back is a part of a character.
        assert set(final[len(text) :]) <= {"\ufffd"} or final.endswith("\ufffd")


def test_what_may_begin_a_stop_string_waits() -> None:
    ids = model().tokenizer("now. Tom", add_special_tokens=False)["input_ids"]
    order = list(enumerate([*ids, 40]))
    transcript = Transcript(model().text, (STOP,), ["now. Tim"], 20)
    pieces = [transcript.take(event) for event in events(order, [1] * len(order))]
    assert pieces[0] == ""
    assert "".join(pieces).startswith("now. Tom")
    with pytest.raises(StopIteration):
        next(piece for piece in pieces[: len(ids) - 1] if piece)
