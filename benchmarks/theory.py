"""Does a lower total correlation go with better few-step decoding?

`python -m benchmarks.theory` joins the students of a comparison with what `t3d analyze` measured
of them, prints means over seeds and rank correlations, and writes benchmarks/theory.json.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from pathlib import Path
from statistics import correlation, fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from t3d.core.files import write_json

MEASURES = ("on_policy_risk", "total_correlation")


def join(rows: list[dict[str, Any]], measurements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a checkpoint: accuracy by tokens a step at block 4, and what was measured.

    Args:
        rows: of a comparison's results.json.
        measurements: of analysis.json; models are called .../METHOD/seedN, but for the original.
    """
    accuracy = defaultdict[tuple[str, int], dict[str, float]](dict)
    for row in rows:
        if row["block_size"] == 4 and row["remasking"] == "low_confidence_static":
            tokens = row["block_size"] // row["denoising_steps"]
            accuracy[row["method"], row["seed"]][f"accuracy_{tokens}"] = row["accuracy"]
    out = []
    for measured in measurements:
        method, _, seed = measured["model"].rpartition("/seed")
        key = (method, int(seed)) if method else ("original", 0)
        means = {name: measured[name]["mean"] for name in MEASURES}
        out.append({"method": key[0], "seed": key[1], **means, **accuracy[key]})
    return out


def correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's rank correlation of accuracy at four tokens a step with each measure."""

    def ranks(key: str) -> list[int]:
        values = sorted(row[key] for row in rows)
        return [bisect_left(values, row[key]) + bisect_right(values, row[key]) for row in rows]

    return {name: correlation(ranks(name), ranks("accuracy_4")) for name in MEASURES}


def mean_by_method(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, in order of appearance."""
    methods = dict.fromkeys(row["method"] for row in rows)
    keys = [key for key in rows[0] if key not in ("method", "seed")]
    return [
        {"method": m, **{key: fmean(r[key] for r in rows if r["method"] == m) for key in keys}}
        for m in methods
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--analysis", type=Path, required=True, help="analysis.json of one noise level"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/compare.json"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/theory.json"))
    asked = parser.parse_args()
    analysis = json.loads(asked.analysis.read_text(encoding="utf-8"))["analysis"]
    results = json.loads(asked.results.read_text(encoding="utf-8"))
    [level] = analysis["levels"]
    rows = join(results["rows"], level["measurements"])
    means = mean_by_method(rows)
    table = Table("method", "risk", "total correlation", "1", "2", "4 tokens a step")
    for row in means:
        percent = [f"{100 * row[f'accuracy_{tokens}']:.1f}" for tokens in (1, 2, 4)]
        table.add_row(row["method"], *(f"{row[name]:.2f}" for name in MEASURES), *percent)
    console = Console()
    console.print(table)
    document = {
        "num_states": analysis["num_states"],
        "rank_correlation_of_checkpoints": correlations(rows),
        "rank_correlation_of_methods": correlations(means),
        "rows": rows,
    }
    for name in ("rank_correlation_of_checkpoints", "rank_correlation_of_methods"):
        console.print(name, document[name])
    write_json(asked.output, document)


if __name__ == "__main__":
    main()
