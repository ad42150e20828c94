"""What a calibration tried and chose, as a table."""

from __future__ import annotations

from rich.console import RenderableType

from t3d.evaluation.calibrate import Choice
from t3d.evaluation.results import ResultRow
from t3d.report.sheets import Entry, Sheet, percent
from t3d.report.tables import Setting


def calibration_terminal(choice: Choice) -> RenderableType:
    """Every setting with its loss, the bound of that loss and the verdict."""
    full = choice.baseline
    lines = [
        [
            Entry(_name(full), bold=choice.row == full),
            Entry(str(full.block_size)),
            Entry(f"{full.tokens_per_forward:.2f}"),
            Entry(percent(full.accuracy)),
            Entry("0.0"),
            Entry("0.0"),
            Entry("baseline"),
        ]
    ]
    lines += [
        [
            Entry(_name(c.row), bold=choice.row == c.row),
            Entry(str(c.row.block_size)),
            Entry(f"{c.row.tokens_per_forward:.2f}"),
            Entry(percent(c.row.accuracy)),
            Entry(percent(c.loss)),
            Entry(percent(c.bound)),
            Entry("accepted" if c.accepted else c.reason),
        ]
        for c in choice.candidates
    ]
    note = (
        f"Accepted: loses at most {choice.max_loss:g} points on {full.n} development problems, "
        f"with {100 * choice.confidence:g} % confidence for all of them together; bounds are "
        f"one-sided at {100 * choice.sweep_confidence:.4g} %. Bold: the fastest, chosen."
    )
    header = ["setting", "block", "tokens/\nforward", "accuracy\n(%)", "loss\n(points)"]
    return Sheet("Calibration", [*header, "at most", "verdict"], [lines], note, num_names=1).rich()


def _name(row: ResultRow) -> str:
    return Setting.of(row).label.replace("\n", ", ")
