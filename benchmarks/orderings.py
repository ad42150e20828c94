"""The published orderings of methods as inequalities, each decided by an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t3d.evaluation.comparison import Comparison, Estimate, Term
from t3d.evaluation.results import ORIGINAL, STATIC, Condition

Verdict = Literal["holds", "does not hold", "undecided", "not measured"]

ORDERINGS = {
    "a": "few-step decoding of the original collapses",
    "b": "T3D is above Naive TD, ReDi and SFT at 4 tokens a step",
    "c": "dParallel loses full-step decoding",
    "d": "T3D keeps full-step decoding",
}
"""What T3D's tables 1 and 2 show, arXiv:2602.12262."""
FEW = 4
"""Tokens a step in (a) and (b)."""
COLLAPSED = 0.5
"""Decoding has collapsed if less than this share of the full-step accuracy is left."""
KEPT = 0.9
"""Full-step decoding is kept above this share of the original's accuracy, and lost below it.

Both shares separate the published numbers of every benchmark and both model sizes.
"""
RIVALS = ("naive_td", "redi", "sft")
"""Whom T3D is above in (b)."""
T3D, DPARALLEL = "t3d", "dparallel"


@dataclass(frozen=True)
class Finding:
    """One inequality of an ordering: the accuracy on the left is above that on the right."""

    ordering: str
    """Its letter in `ORDERINGS`."""
    condition: Condition
    claim: str
    left: float | None
    """None where not measured."""
    right: float | None
    margin: Estimate | None
    """Left minus right."""

    @property
    def verdict(self) -> Verdict:
        """Undecided where the interval of the margin includes 0."""
        if self.margin is None:
            return "not measured"
        return ("undecided", "holds", "does not hold")[self.margin.sign]


def findings(comparison: Comparison, method: str = T3D) -> list[Finding]:
    """Every inequality of the orderings, under each static condition that there is.

    Args:
        method: whom (b) and (d) are about.
    """
    static = [c for c in comparison.conditions if c.remasking == STATIC]
    few = [c for c in static if c.tokens_per_step == FEW]
    full = [c for c in static if c == c.full]
    rivals = [rival for rival in RIVALS if rival != method]
    pairs = [
        *(("a", Term(ORIGINAL, c.full, COLLAPSED), Term(ORIGINAL, c)) for c in few),
        *(("b", Term(method, c), Term(rival, c)) for c in few for rival in rivals),
        *(("c", Term(ORIGINAL, c, KEPT), Term(DPARALLEL, c)) for c in full),
        *(("d", Term(method, c), Term(ORIGINAL, c, KEPT)) for c in full),
    ]
    return [
        Finding(
            ordering,
            right.condition,
            _claim(left, right),
            comparison.value(left),
            comparison.value(right),
            comparison.margin(left, right),
        )
        for ordering, left, right in pairs
    ]


def _claim(left: Term, right: Term) -> str:
    """`0.5 × original, full steps > original`."""
    names = [
        term.method if term.factor == 1 else f"{term.factor:g} × {term.method}"
        for term in (left, right)
    ]
    names[0] += ", full steps" if left.condition != right.condition else ""
    return " > ".join(names)


def verdict(found: list[Finding]) -> Verdict:
    """Several inequalities as one: all hold, any does not, or neither is sure."""
    verdicts = {finding.verdict for finding in found}
    if verdicts <= {"not measured"}:
        return "not measured"
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts == {"holds"} else "undecided"
