"""Statistics of a comparison of methods: every number with a 95 % interval.

Intervals are percentiles of a bootstrap that resamples training seeds and problems, each with
replacement and independently of the other (Owen, The pigeonhole bootstrap, Annals of Applied
Statistics 1(2), 2007). All methods share the draw of problems, and methods with the same seeds
share the draw of seeds, so a difference of two methods is paired. Methods with different seeds,
such as the original, draw theirs independently. With S seeds the bootstrap understates their
variance by the factor (S - 1) / S.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from t3d.core.rng import derive_key, fold, uniform
from t3d.decoding.config import STATIC
from t3d.evaluation.results import ORIGINAL, Cell, Condition, ResultRow, num_problems

LEVEL = 0.95
_CHUNK = 500


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class _Draws:
    """A statistic, computed on the data and on each of R resamples, float64 [R]."""

    value: float
    resampled: Tensor

    def minus(self, other: _Draws) -> _Draws:
        return _Draws(self.value - other.value, self.resampled - other.resampled)

    def over(self, other: _Draws) -> _Draws | None:
        """The ratio; None unless the interval of the denominator lies above 0.

        The few resamples where it is not positive are left out.
        """
        if other.estimate.sign < 1:
            return None
        kept = other.resampled > 0
        return _Draws(self.value / other.value, self.resampled[kept] / other.resampled[kept])

    @property
    def estimate(self) -> Estimate:
        # Order statistics with equally many resamples cut off at both ends, so that the interval
        # of the negated difference is exactly the negated interval.
        num = len(self.resampled)
        cut = int(num * (1 - LEVEL) / 2)
        low, high = (self.resampled.kthvalue(k).values for k in (cut + 1, num - cut))
        return Estimate(self.value, float(low), float(high))


def _multiplicities(key: int, num_items: int, start: int, stop: int) -> Tensor:
    """How often resamples `start` to `stop` drew each item, float32 [stop - start, items]."""
    keys = fold(torch.tensor(key), torch.arange(start, stop)[:, None], torch.arange(num_items))
    drawn = (uniform(keys) * num_items).long()
    return torch.zeros(drawn.shape).scatter_add_(1, drawn, torch.ones(drawn.shape))


class Comparison:
    """Cells of several methods, and every statistic of them.

    Statistics are None where a cell that they need is missing. Over several conditions they
    are about the mean of the accuracies, as in the average columns of T3D's tables.

    Args:
        cells: results, in any order, which changes nothing.
        num_resamples: number of resamples of the bootstrap.
        seed: seed of the bootstrap.

    Raises:
        ValueError: if there are no cells, two for one checkpoint and condition, or cells of a
            task that differ in the number of problems.
    """

    def __init__(
        self, cells: Sequence[Cell], *, num_resamples: int = 10_000, seed: int = 0
    ) -> None:
        if not cells:
            raise ValueError("there are no cells to compare")
        self.num_resamples = num_resamples
        self.seed = seed
        self._cells: dict[tuple[str, Condition, int], Cell] = {}
        for cell in cells:
            row = cell.row
            key = (row.method, Condition.of(row), row.seed)
            if key in self._cells:
                raise ValueError(f"two cells for method {row.method}, seed {row.seed}, {key[1]}")
            self._cells[key] = cell
        self.num_problems = num_problems([cell.row for cell in cells], "cells")
        self.methods = sorted({method for method, _, _ in self._cells})
        self.conditions = sorted({c for _, c, _ in self._cells}, key=lambda c: c.rank)
        self._seeds: dict[tuple[str, Condition], tuple[int, ...]] = {}
        for method, condition, number in sorted(self._cells, key=lambda name: name[2]):
            known = self._seeds.get((method, condition), ())
            self._seeds[method, condition] = (*known, number)
        self._seed_draws: dict[tuple[int, ...], Tensor] = {}
        self._known: dict[tuple[str, Condition], _Draws] = {}

    def seeds(self, method: str, condition: Condition) -> tuple[int, ...]:
        """Seeds of the cells that exist, ascending."""
        return self._seeds.get((method, condition), ())

    @property
    def has_one_seed(self) -> bool:
        """Whether no method has several seeds, so that the spread over seeds is unknown."""
        return max(map(len, self._seeds.values())) == 1

    def rows(self, method: str, condition: Condition | None = None) -> list[ResultRow]:
        """The rows of a method by seed, of one condition or of all."""
        conditions = self.conditions if condition is None else [condition]
        return [
            self._cells[method, one, seed].row
            for one in conditions
            for seed in self.seeds(method, one)
        ]

    def accuracy(self, method: str, *conditions: Condition) -> Estimate | None:
        """Mean accuracy over seeds, 0 to 1."""
        draws = self._draws(method, conditions)
        return None if draws is None else draws.estimate

    def difference(self, method: str, other: str, *conditions: Condition) -> Estimate | None:
        """Accuracy of `method` minus that of `other`, paired by problem and, if equal, by seed."""
        left, right = self._draws(method, conditions), self._draws(other, conditions)
        return None if left is None or right is None else left.minus(right).estimate

    def improvement(self, method: str, *conditions: Condition) -> Estimate | None:
        """(accuracy - original) / original; None if the original's interval includes 0."""
        left, base = self._draws(method, conditions), self._draws(ORIGINAL, conditions)
        if left is None or base is None:
            return None
        ratio = left.minus(base).over(base)
        return None if ratio is None else ratio.estimate

    def gap_closed(self, method: str, condition: Condition) -> Estimate | None:
        """(accuracy - original) / (original at full steps - original), else at `condition`.

        It is the share of the accuracy lost by few-step decoding that training recovers. None where
        nothing is lost, or too little for the denominator's interval to lie above 0.
        """
        left, few = self._draws(method, [condition]), self._draws(ORIGINAL, [condition])
        full = self._draws(ORIGINAL, [condition.full])
        if left is None or few is None or full is None:
            return None
        share = left.minus(few).over(full.minus(few))
        return None if share is None else share.estimate

    @cached_property
    def speeds(self) -> dict[tuple[float, float], list[Condition]]:
        """(temperature, tokens a step) -> the static conditions of all tasks and block sizes."""
        out: dict[tuple[float, float], list[Condition]] = {}
        for c in self.conditions:
            if c.decoding.remasking == STATIC:
                speed = c.decoding.temperature, c.decoding.tokens_per_step
                out.setdefault(speed, []).append(c)
        return dict(sorted(out.items()))

    def document(self) -> dict[str, Any]:
        """Every statistic and the settings of the bootstrap, as JSON.

        Differences are of each pair of methods once, in the order of their names.
        """
        accuracy, differences = [], []
        for condition in self.conditions:
            where = condition.document()
            here = [method for method in self.methods if self.seeds(method, condition)]
            for method in here:
                rows = self.rows(method, condition)
                accuracy.append(
                    {
                        "method": method,
                        **where,
                        "n": rows[0].n,
                        "seeds": [row.seed for row in rows],
                        "accuracy": _plain(self.accuracy(method, condition)),
                        "seed_deviation": stdev(row.accuracy for row in rows)
                        if len(rows) > 1
                        else None,
                        "improvement": _plain(self.improvement(method, condition)),
                        "gap_closed": _plain(self.gap_closed(method, condition)),
                    }
                )
            for method, other in combinations(here, 2):
                difference = _plain(self.difference(method, other, condition))
                differences.append(
                    {"method": method, "other": other, **where, "difference": difference}
                )
        averages = [
            {
                "method": method,
                "temperature": temperature,
                "tokens_per_step": speed,
                "conditions": len(conditions),
                "accuracy": _plain(self.accuracy(method, *conditions)),
                "improvement": _plain(self.improvement(method, *conditions)),
            }
            for (temperature, speed), conditions in self.speeds.items()
            for method in self.methods
        ]
        return {
            "bootstrap": {
                "num_resamples": self.num_resamples,
                "seed": self.seed,
                "level": LEVEL,
                "resampled": ["seeds", "problems"],
            },
            "accuracy": accuracy,
            "averages": averages,
            "differences": differences,
        }

    def _draws(self, method: str, conditions: Sequence[Condition]) -> _Draws | None:
        """The mean accuracy over conditions; None if there are none or one has no cells."""
        if not conditions or not all(self.seeds(method, one) for one in conditions):
            return None
        parts = [self._condition_draws(method, one) for one in conditions]
        stacked = torch.stack([part.resampled for part in parts])
        return _Draws(sum(part.value for part in parts) / len(parts), stacked.mean(0))

    def _condition_draws(self, method: str, condition: Condition) -> _Draws:
        """The mean accuracy over seeds."""
        if (method, condition) not in self._known:
            seeds = self.seeds(method, condition)
            cells = [self._cells[method, condition, seed] for seed in seeds]
            # One division of exact integer sums, so that equal data give equal numbers.
            num = len(seeds) * self.num_problems[condition.task]
            sums = torch.stack(
                [self._sums[method, condition, seed] for seed in seeds], dim=-1
            ).double()
            resampled = (sums * self._seed_multiplicities(seeds)).sum(-1) / num
            value = sum(sum(cell.correct) for cell in cells) / num
            self._known[method, condition] = _Draws(value, resampled)
        return self._known[method, condition]

    def _seed_multiplicities(self, seeds: tuple[int, ...]) -> Tensor:
        """float32 [R, seeds]; a function of the seeds alone, so that equal seeds are paired."""
        if seeds not in self._seed_draws:
            key = derive_key(self.seed, "seeds", *seeds)
            self._seed_draws[seeds] = _multiplicities(key, len(seeds), 0, self.num_resamples)
        return self._seed_draws[seeds]

    @cached_property
    def _sums(self) -> dict[tuple[str, Condition, int], Tensor]:
        """Correct answers of each cell among the resampled problems, float32 [R]."""
        out: dict[tuple[str, Condition, int], Tensor] = {}
        for task, num in self.num_problems.items():
            names = [name for name in self._cells if name[1].task == task]
            correct = torch.tensor([self._cells[name].correct for name in names]).float()
            key = derive_key(self.seed, "problems", task)
            parts = [
                correct @ _multiplicities(key, num, start, stop).T
                for start in range(0, self.num_resamples, _CHUNK)
                for stop in [min(start + _CHUNK, self.num_resamples)]
            ]
            out |= dict(zip(names, torch.cat(parts, dim=1), strict=True))
        return out


def _plain(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else dataclasses.asdict(estimate)
