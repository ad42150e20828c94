"""What a calibration tried and chose, as a table."""

from __future__ import annotations

from rich.console import RenderableType

from t3d.evaluation.calibrate import Candidate, Choice
from t3d.report.sheets import Entry, Sheet, percent
from t3d.report.tables import Setting


def calibration_terminal(choice: Choice) -> RenderableType:
    """Every setting with its verdict, its loss and the bound of that loss."""
    full = choice.baseline
    tried = [(full, "baseline", 0.0, 0.0)]
    tried += [(c.row, _verdict(c), c.loss, c.bound) for c in choice.candidates]
    lines = [
        [
            Entry(Setting.of(row).label.replace("\n", ", "), bold=row == choice.row),
            Entry(verdict),
            Entry(str(row.block_size)),
            Entry(f"{row.tokens_per_forward:.2f}"),
            Entry(percent(row.accuracy)),
            Entry(percent(loss)),
            Entry(percent(bound)),
        ]
        for row, verdict, loss, bound in tried
    ]
    note = (
        f"Accepted: loses at most {choice.max_loss:g} points on {full.n} development problems, "
        f"with {100 * choice.confidence:g} % confidence for all of them together; bounds are "
        f"one-sided at {100 * choice.sweep_confidence:.4g} %. Not tried: a slower setting was "
        "refused. Bold: the fastest accepted one, chosen."
    )
    header = ["setting", "verdict", "block", "tokens/\nforward", "accuracy\n(%)"]
    return Sheet("Calibration", [*header, "loss\n(points)", "at\nmost"], [lines], note).rich()


def _verdict(candidate: Candidate) -> str:
    if candidate.accepted:
        return "accepted"
    return "not tried" if candidate.reason.startswith("not tried") else "refused"
