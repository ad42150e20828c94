"""The speed-accuracy frontier of rows of results: points, Pareto flags and AUP.

Pure functions of `ResultRow`s, which may come from several results files.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from t3d.evaluation.results import Condition, ResultRow, num_problems

ALPHA = 3.0
"""Rate at which AUP's weight falls with accuracy."""
TOLERANCE = 0.05
"""Largest loss of accuracy to the slowest point with which a point counts in AUP."""


@dataclass(frozen=True)
class Point:
    """One method under one decoding setting; numbers are means over seeds."""

    name: str
    """Name of the method; `METHOD (MODEL)` where several models share a method and seed."""
    condition: Condition
    seeds: tuple[int, ...]
    n: int
    """Number of problems."""
    accuracy: float
    """Share of correct answers, 0 to 1."""
    ci95: tuple[float, float]
    """Wilson interval of the accuracy; over several seeds, the mean of each end."""
    tokens_per_forward: float
    tokens_per_second: float
    pareto: bool
    """Whether no other point of the name, task and temperature is at least as accurate at no fewer
        tokens per forward and better in one of them."""
    pareto_seconds: bool
    """Whether the same holds with tokens per second in place of tokens per forward."""


@dataclass(frozen=True)
class Score:
    """AUP of one method on one task at one temperature."""

    name: str
    task: str
    temperature: float
    aup: float
    """Area under the frontier, in percent times tokens per forward."""
    num_points: int
    num_kept: int
    """Number of points whose accuracy is high enough to count."""
    fastest: float
    """Highest tokens per forward among the points that count."""
    best: float
    """Highest accuracy among all points of the method, 0 to 1."""


@dataclass(frozen=True)
class Frontier:
    """Points by task, temperature, name and rising tokens per forward; a score for each name."""

    points: tuple[Point, ...]
    scores: tuple[Score, ...]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (speed, accuracy) no other dominates; equal points do not dominate each other."""
    return [
        not any(other != (x, y) and other[0] >= x and other[1] >= y for other in points)
        for x, y in points
    ]


def kept(
    points: Iterable[tuple[float, float]], tolerance: float = TOLERANCE
) -> list[tuple[float, float]]:
    """The (speed, accuracy) that AUP counts, by rising speed: y >= y_1 - `tolerance`.

    Of points at one speed, only the most accurate counts.
    """
    highest: dict[float, float] = {}
    for x, y in points:
        highest[x] = max(y, highest.get(x, y))
    line = sorted(highest.items())
    # The last term is for rounding: 0.35 - 0.05 is a little above 0.3.
    return [(x, y) for x, y in line if y >= line[0][1] - tolerance - 1e-9]


def aup(
    points: Iterable[tuple[float, float]],
    best: float,
    *,
    alpha: float = ALPHA,
    tolerance: float = TOLERANCE,
) -> float:
    """Accuracy under parallelism (d3LLM, arXiv:2601.07568), in percent times tokens per forward.

    AUP = rho_1 y_1 + sum_i (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2 over the
    points `kept`, W(y) = min(exp(-alpha (1 - y / y_max)), 1).

    Args:
        points: (rho, y), tokens per forward and accuracy from 0 to 1, in any order; at least one.
        best: y_max, the highest accuracy of any method on the task, 0 to 1.
        alpha: how fast the weight falls.
        tolerance: share of accuracy that a point may lose to the slowest.
    """
    line = kept(points, tolerance)
    weighted = [
        (x, y * min(math.exp(-alpha * (1 - y / best)), 1.0) if best > 0 else 0.0) for x, y in line
    ]
    (first, accuracy), *_ = line
    area = sum((b - a) * (v + w) / 2 for (a, v), (b, w) in pairwise(weighted))
    return 100 * (first * accuracy + area)


def frontier(rows: Sequence[ResultRow]) -> Frontier:
    """Points and scores of rows, in an order that does not depend on theirs.

    Raises:
        ValueError: if there are no rows, two for one checkpoint and setting, or rows of a task
            that differ in the number of problems.
    """
    if not rows:
        raise ValueError("there are no result rows for a frontier; make some with `t3d eval`")
    tasks = num_problems(rows, "rows")
    points = points_of(rows)
    best = {task: max(p.accuracy for p in points if p.condition.task == task) for task in tasks}
    curves: dict[tuple[str, float, str], list[tuple[float, float]]] = defaultdict(list)
    for p in points:
        where = p.condition.task, p.condition.decoding.temperature, p.name
        curves[where].append((p.tokens_per_forward, p.accuracy))
    scores = [
        Score(
            name=name,
            task=task,
            temperature=temperature,
            aup=aup(own, best[task]),
            num_points=len(own),
            num_kept=len(kept(own)),
            fastest=kept(own)[-1][0],
            best=max(y for _, y in own),
        )
        for (task, temperature, name), own in sorted(curves.items())
    ]
    return Frontier(tuple(points), tuple(scores))


def points_of(rows: Sequence[ResultRow]) -> list[Point]:
    """The points of rows, by task, temperature, name and rising tokens per forward.

    Raises:
        ValueError: for two rows for one checkpoint and setting.
    """
    models: dict[tuple[str, int], set[str]] = defaultdict(set)
    for row in rows:
        models[row.method, row.seed].add(row.model)
    shared = {method for (method, _), names in models.items() if len(names) > 1}
    cells: dict[tuple[str, Condition], dict[int, ResultRow]] = defaultdict(dict)
    for row in rows:
        name = f"{row.method} ({row.model})" if row.method in shared else row.method
        seeds = cells[name, Condition.of(row)]
        if row.seed in seeds:
            raise ValueError(
                f"two result rows for {name}, seed {row.seed}, {row.task}, {row.decoding.name}; "
                "keep one, or give one of them a method name of its own"
            )
        seeds[row.seed] = row
    curves: dict[tuple[str, float, str], list[tuple[Condition, list[ResultRow]]]] = defaultdict(
        list
    )
    for (name, condition), seeds in cells.items():
        group = [seeds[seed] for seed in sorted(seeds)]
        curves[condition.task, condition.decoding.temperature, name].append((condition, group))
    return [p for (*_, name), curve in sorted(curves.items()) for p in _points(name, curve)]


def _points(name: str, curve: list[tuple[Condition, list[ResultRow]]]) -> list[Point]:
    """The points of one method on one task at one temperature."""
    forward, seconds, accuracy = (
        [mean(getattr(row, field) for row in group) for _, group in curve]
        for field in ("tokens_per_forward", "tokens_per_second", "accuracy")
    )
    found = [
        Point(
            name=name,
            condition=condition,
            seeds=tuple(row.seed for row in group),
            n=group[0].n,
            accuracy=accuracy[i],
            ci95=(mean(row.ci95[0] for row in group), mean(row.ci95[1] for row in group)),
            tokens_per_forward=forward[i],
            tokens_per_second=seconds[i],
            pareto=pareto(list(zip(forward, accuracy, strict=True)))[i],
            pareto_seconds=pareto(list(zip(seconds, accuracy, strict=True)))[i],
        )
        for i, (condition, group) in enumerate(curve)
    ]
    return sorted(found, key=lambda p: (p.tokens_per_forward, p.condition.rank))
