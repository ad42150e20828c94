"""Frames of JSON over a socket, and Python's plain data in them.

Runs inside the sandbox too, so it imports the standard library only.
"""

from __future__ import annotations

import builtins
import json
import socket
import struct
import sys

TYPE_CHECKING = False  # Importing typing costs as much as starting the interpreter.
if TYPE_CHECKING:
    from typing import Any

MAX_FRAME = 64 << 20
"""Largest size of one message, in bytes."""
MAX_FRACTION_BITS = 1 << 20
"""Largest size of a numerator or denominator, in bits: time to reduce a fraction grows with its
square."""


def send(channel: socket.socket, message: Any) -> None:
    """Send one frame: four bytes of length, then JSON.

    Raises:
        MemoryError: if the message is longer than `MAX_FRAME`.
    """
    data = json.dumps(message).encode()
    if len(data) > MAX_FRAME:
        raise MemoryError
    channel.sendall(struct.pack("!I", len(data)) + data)


def receive(channel: socket.socket) -> Any:
    """Wait for the next frame and return its message.

    Raises:
        EOFError: if the other side is gone.
        ValueError: if the frame is longer than `MAX_FRAME`, or not JSON.
    """

    def exactly(num: int) -> bytearray:
        data = bytearray()
        while len(data) < num:
            part = channel.recv(min(num - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return data

    (size,) = struct.unpack("!I", exactly(4))
    if size > MAX_FRAME:
        raise ValueError(size)
    return json.loads(exactly(size))


# Values cross as plain data. A subclass crosses as its base, so its own `__eq__` has no say.


class Opaque(Exception):
    """A value that is not plain data."""


_VIEWS = (type({}.keys()), type({}.items()))


def encode(value: Any) -> Any:
    """Plain data as JSON; containers, bytes and numbers that JSON lacks become [tag, ...].

    Raises:
        Opaque: for any other value.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        number = int.__int__(value)
        # In hex, because decimal digits of a long integer take time that grows with its square.
        return number if number.bit_length() < 64 else ["int", hex(number)]
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, complex):
        return ["complex", value.real, value.imag]
    if issubclass(kind, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if issubclass(kind, dict):
        return ["dict", *([encode(key), encode(item)] for key, item in dict.items(value))]
    if issubclass(kind, _VIEWS):
        return ["set", *map(encode, value)]
    for base in (list, tuple, set, frozenset):
        if issubclass(kind, base):
            return [base.__name__, *map(encode, base.__iter__(value))]
    # Looked up rather than imported: such a value exists only if its module was imported.
    if "fractions" in sys.modules and issubclass(kind, sys.modules["fractions"].Fraction):
        return ["Fraction", hex(value.numerator), hex(value.denominator)]
    if "decimal" in sys.modules and issubclass(kind, decimal := sys.modules["decimal"].Decimal):
        return ["Decimal", decimal.__str__(value)]
    raise Opaque


def decode(data: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        Exception: any exception, for data that `encode` does not make.
    """
    if not isinstance(data, list):
        return data
    tag, *items = data
    match tag:
        case "int":
            return int(items[0], 16)
        case "complex":
            return complex(*items)
        case "bytes":
            return bytes.fromhex(items[0])
        case "dict":
            return {decode(key): decode(item) for key, item in items}
        case "list" | "tuple" | "set" | "frozenset":
            return getattr(builtins, tag)(map(decode, items))
        case "Fraction":
            from fractions import Fraction

            numerator, denominator = (int(item, 16) for item in items)
            if max(numerator.bit_length(), denominator.bit_length()) > MAX_FRACTION_BITS:
                raise ValueError(tag)
            return Fraction(numerator, denominator)
        case "Decimal":
            from decimal import Decimal

            return Decimal(items[0])
        case "opaque":
            return object()  # Equals nothing, is not None, has no order.
    raise ValueError(tag)
