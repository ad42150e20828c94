"""The fastest decoding setting whose loss of accuracy is bounded with a stated confidence.

The loss of a setting is its accuracy's distance below that of full-step decoding, on the same
problems. "The loss is at least m" is tested exactly: the p value is the largest probability, over
all shares of disagreement, of a score statistic (Tango, Statistics in Medicine 17, 1998) as low
as the one found; it is attained at a loss of m (Hsueh, Liu and Chen, Unconditional exact tests
for equivalence or noninferiority for paired binary endpoints, Biometrics 57(2), 2001). It holds
for any number of problems, also where the two never disagree.

Settings that differ only in steps and threshold are a sweep. A sweep is tested from slow to fast
up to the first refusal, which needs no correction because its order does not depend on the data,
and S sweeps have a share of 1 / S of the error each (Learn then Test, arXiv:2110.01052, fixed
sequences with several starts). So with the stated confidence, all accepted settings keep the
bound at once, and taking the fastest by measured speed is allowed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from t3d.decoding.config import DecodingConfig
from t3d.evaluation.config import Speed
from t3d.evaluation.results import Cell, Condition, ResultRow, row_document

_NUISANCE = 65
"""Number of shares of disagreement at which the tail's probability is computed."""
_PRECISION = 2e-4
"""Precision of the bounds, as a share."""


@dataclass(frozen=True)
class Candidate:
    """A setting that was tested, with its result; shares are 0 to 1."""

    row: ResultRow
    losses: int
    """Number of problems that only the baseline solved."""
    gains: int
    """Number of problems that only this setting solved."""
    bound: float
    """Upper confidence bound of the loss at the sweep's level, 0 if it is below."""
    accepted: bool
    reason: str

    @property
    def loss(self) -> float:
        """The measured loss of accuracy."""
        return (self.losses - self.gains) / self.row.n


@dataclass(frozen=True)
class Choice:
    """The setting to use and how it was found."""

    row: ResultRow
    """Row of the fastest accepted setting, or of the baseline if none is faster."""
    bound: float
    """Upper confidence bound of the chosen setting's loss, 0 to 1; 0 for the baseline."""
    baseline: ResultRow
    candidates: tuple[Candidate, ...]
    """Candidates sweep by sweep, slow before fast."""
    max_loss: float
    """Largest loss of accuracy that is allowed, in points."""
    confidence: float
    """Confidence that all accepted settings together lose at most `max_loss`."""
    sweep_confidence: float
    """Confidence of each single bound; the sweeps share the error that `confidence` allows."""
    speed: Speed

    def document(self) -> dict[str, Any]:
        """The fields as JSON, with rows as in results.json."""
        candidates = [asdict(one) | {"row": row_document(one.row)} for one in self.candidates]
        rows = {"row": row_document(self.row), "baseline": row_document(self.baseline)}
        return asdict(self) | rows | {"candidates": candidates}


def check_limits(max_loss: float, confidence: float) -> None:
    """Raise ValueError for limits that `choose` does not take."""
    if not 0 <= max_loss < 100:
        raise ValueError(f"max_loss must lie in [0, 100) points, got {max_loss:g}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence:g}")


def choose(
    cells: Sequence[Cell],
    baseline: Cell,
    *,
    max_loss: float,
    confidence: float,
    speed: Speed = "tokens_per_forward",
) -> Choice:
    """The fastest setting that loses at most `max_loss` points of accuracy to the baseline.

    Args:
        cells: settings of the baseline's checkpoint on the same problems; a cell of the
            baseline's own setting is no candidate.
        baseline: full-step decoding.
        max_loss: largest loss allowed, in points (percent of all problems), 0 <= max_loss < 100.
        confidence: one-sided confidence for all accepted settings together, between 0 and 1.
        speed: field of the rows by which the fastest setting is found.

    Raises:
        ValueError: for numbers out of range, two cells of one setting, or cells of another
            checkpoint, task or number of problems than the baseline's.
    """
    check_limits(max_loss, confidence)
    full = Condition.of(baseline.row)
    same = {"confidence_threshold": 0.0, "entropy_bound": 0.0}
    sweeps: dict[DecodingConfig, dict[Condition, Cell]] = defaultdict(dict)
    for cell in cells:
        _check_same_problems(cell.row, baseline.row)
        one = Condition.of(cell.row)
        if one == full:
            continue
        # Settings of one sweep are equal in everything but steps, threshold and entropy bound.
        sweep = sweeps[replace(one.decoding, denoising_steps=1, **same)]
        if one in sweep:
            raise ValueError(f"two cells for {one}; keep one")
        sweep[one] = cell
    error = (1 - confidence) / max(1, len(sweeps))
    candidates = [
        candidate
        for _, sweep in sorted(sweeps.items(), key=lambda item: item[0].rank)
        for candidate in _walk(
            [sweep[one] for one in sorted(sweep, key=lambda c: c.rank)],
            baseline,
            max_loss / 100,
            error,
        )
    ]
    row, bound = baseline.row, 0.0
    for candidate in candidates:
        own = candidate.row
        # In a tie the baseline or the slower setting stays, as nothing would be gained.
        if candidate.accepted and (getattr(own, speed), own.accuracy) > (
            getattr(row, speed),
            row.accuracy,
        ):
            row, bound = own, candidate.bound
    return Choice(
        row=row,
        bound=bound,
        baseline=baseline.row,
        candidates=tuple(candidates),
        max_loss=max_loss,
        confidence=confidence,
        sweep_confidence=1 - error,
        speed=speed,
    )


def _check_same_problems(row: ResultRow, baseline: ResultRow) -> None:
    for name in ("task", "method", "model", "seed", "n"):
        found, wanted = getattr(row, name), getattr(baseline, name)
        if found != wanted:
            raise ValueError(
                f"calibration compares settings of one checkpoint on the same problems, but {name} "
                f"is {found!r} in a cell and {wanted!r} in the baseline"
            )


def _walk(cells: list[Cell], baseline: Cell, margin: float, error: float) -> list[Candidate]:
    """Test one sweep, slow to fast, up to the first refusal."""
    out: list[Candidate] = []
    failed = False
    for cell in cells:
        pairs = list(zip(baseline.correct, cell.correct, strict=True))
        losses, gains = pairs.count((True, False)), pairs.count((False, True))
        n = len(pairs)
        passed = loss_p_value(losses, gains, n, margin) <= error
        # Searched on this side of `margin` only, so rounding cannot contradict the test's verdict.
        ends = (0.0, margin) if passed else (margin, 1.0)
        bound = _bisect(losses, gains, n, error, *ends)
        points = f"{100 * bound:.2f} points"
        if failed:
            reason = "not tried: a slower setting of its sweep was refused"
        elif passed:
            reason = f"loses at most {points}"
        elif loss_p_value(0, 0, n, margin) > error:
            reason = f"may lose {points}; equal answers to {n} problems would not do, use more"
        else:
            reason = f"may lose {points}"
        failed |= not passed
        out.append(Candidate(cell.row, losses, gains, bound, not failed, reason))
    return out


def _score(losses: Tensor, gains: Tensor, n: int, margin: float) -> Tensor:
    """Tango's z for a loss of `margin`, float64 [...]; low values are evidence of a smaller one."""
    linear = (2 * n - losses + gains) * margin - losses - gains
    root = (linear**2 + 8 * n * gains * margin * (1 - margin)).sqrt()
    # The maximum-likelihood share of gains under a loss of `margin`; rounding may give -1e-17.
    share = ((root - linear) / (4 * n)).clamp(min=0)
    spread = (n * (2 * share + margin * (1 - margin))).sqrt()
    distance = losses - gains - n * margin
    return torch.where(distance == 0, 0.0, distance / spread)


def loss_p_value(losses: int, gains: int, n: int, margin: float) -> float:
    """The exact p value of "the loss is at least `margin`" (see the module).

    Args:
        losses: problems that only the baseline solved.
        gains: problems that only the setting solved.
        n: all problems.
        margin: a share, 0 <= margin < 1.
    """
    assert losses >= 0, losses
    assert gains >= 0, gains
    assert losses + gains <= n, (losses, gains, n)
    assert 0 <= margin < 1, margin
    lost, won, log_ways = _tables(n)
    # The tolerance makes statistics equal that differ by rounding.
    limit = float(_score(_scalar(losses), _scalar(gains), n, margin)) + 1e-6
    tail = _score(lost, won, n, margin) <= limit
    lost, won, log_ways = lost[tail], won[tail], log_ways[tail]
    worst = 0.0
    # The grid of shares of gains is dense near 0, since few problems are gained.
    for step in range(_NUISANCE):
        gain = (step / (_NUISANCE - 1)) ** 2 * (1 - margin) / 2
        shares = gain + margin, gain, 1 - 2 * gain - margin
        # Not -inf, because 0 problems times the log of a share of 0 must be 0.
        lose, win, rest = (math.log(max(share, 1e-300)) for share in shares)
        log_probability = log_ways + lost * (lose - rest) + won * (win - rest) + n * rest
        worst = max(worst, float(log_probability.exp_().sum()))
    return min(1.0, worst)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@lru_cache(maxsize=1)
def _tables(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gains and the log of the number of ways, for all pairs of counts; float64 [pairs]."""
    lost, won = torch.triu_indices(n + 1, n + 1).double()
    won = won - lost
    ways = [torch.lgamma(count + 1) for count in (lost, won, n - lost - won)]
    log_ways = math.lgamma(n + 1) - torch.stack(ways).sum(0)
    return lost, won, log_ways


def loss_bound(losses: int, gains: int, n: int, confidence: float) -> float:
    """The upper confidence bound of the loss as a share; 0 if the loss is surely below.

    Args:
        losses: problems that only the baseline solved.
        gains: problems that only the setting solved.
        n: all problems.
        confidence: one-sided, between 0 and 1.
    """
    return _bisect(losses, gains, n, 1 - confidence, 0.0, 1.0)


def _bisect(losses: int, gains: int, n: int, error: float, low: float, high: float) -> float:
    """The smallest loss between `low` and `high` that is refused; rounded up."""
    if low == 0 and loss_p_value(losses, gains, n, 0.0) <= error:
        return 0.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if loss_p_value(losses, gains, n, middle) <= error:
            high = middle
        else:
            low = middle
    return high
