"""Checks of what a user gives: numbers by their interval, in which NaN never lies, and choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

WORKERS = "[1, 1024]"
"""Interval of the number of worker processes on one machine; each has a pipe, and a system has no
millions of them."""
_WORDS = {"[0, inf)": "must not be negative", "(0, inf)": "must be positive"}


def check_number(name: str, value: object, interval: str, *, whole: bool = False) -> None:
    """Check that a number lies in an interval, written as in `[0, 1)`.

    Raises:
        ValueError: for a number outside, NaN, an infinity that the interval does not hold, or
            a value that is no number.
    """
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{name} must be a {'whole ' * whole}number, got {value!r}")
    low, high = (float(end) for end in interval[1:-1].split(", "))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if above and below:
        return
    words = _WORDS.get(interval, f"must lie in {interval}")
    if math.isnan(number) or (math.isinf(number) and interval.endswith("inf)")):
        words = "must be a finite number"
    elif interval[0] == "[" and interval.endswith(", inf)") and low:
        words = f"must be at least {low:g}"
    raise ValueError(f"{name} {words}, got {value!r}")


def check_ranges(config: Any, ranges: Mapping[str, str], *, where: str = "") -> None:
    """Check that the numbers of a dataclass lie in their ranges.

    Every item of a list is checked; None passes where the annotation allows it.

    Args:
        config: the dataclass; its annotations must be strings, as
            `from __future__ import annotations` makes them.
        ranges: maps an interval to the names of its fields, separated by blanks.
        where: prefix of the field's name in messages.

    Raises:
        ValueError: naming the field.
    """
    kinds = {field.name: str(field.type) for field in fields(config)}
    for interval, names in ranges.items():
        for name in names.split():
            value, kind = getattr(config, name), kinds[name]
            if value is None and "None" in kind:
                continue
            numbers = [value]
            if kind.startswith(("list", "tuple")):
                if not isinstance(value, list | tuple):
                    raise ValueError(f"{where}{name} must be a list of numbers, got {value!r}")
                numbers = value
            for number in numbers:
                check_number(f"{where}{name}", number, interval, whole="float" not in kind)


def check_choices(config: Any, names: str) -> None:
    """Check that fields of a dataclass have one of the values that their `Literal` lists.

    Args:
        config: the dataclass.
        names: names of fields, separated by blanks.

    Raises:
        ValueError: naming the field.
    """
    kinds = get_type_hints(type(config))
    for name in names.split():
        value, known = getattr(config, name), get_args(kinds[name])
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
