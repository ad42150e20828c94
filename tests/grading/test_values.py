"""Values that cross from the program to the judge."""

from __future__ import annotations

import json
import socket
import struct
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.grading.values import MAX_FRAME, Opaque, decode, encode, receive, send

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
)
HASHABLE = st.recursive(
    SCALARS, lambda s: st.tuples(s, s) | st.frozensets(s, max_size=3), max_leaves=4
)
VALUES = st.recursive(
    HASHABLE,
    lambda s: (
        st.lists(s, max_size=3)
        | st.dictionaries(HASHABLE, s, max_size=3)
        | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
def test_values_cross_unchanged(value: object) -> None:
    crossed = decode(json.loads(json.dumps(encode(value))))
    assert crossed == value
    assert type(crossed) is type(value)


def test_what_defines_its_own_equality_does_not_cross() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

    class Seven(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Text(Decimal):
        def __str__(self) -> str:
            return "spam"

    with pytest.raises(Opaque):
        encode([Equal()])
    assert type(decode(encode(Seven(7)))) is int
    assert type(decode(encode(Text(7)))) is Decimal
    assert decode(["opaque"]) != 7


def test_a_frame_has_a_largest_size() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(MemoryError):
            send(ours, "x" * MAX_FRAME)
        ours.sendall(struct.pack("!I", MAX_FRAME + 1))
        with pytest.raises(ValueError, match=str(MAX_FRAME + 1)):
            receive(theirs)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            receive(theirs)
