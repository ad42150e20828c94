"""How well and how fast mathematics is graded: `python -m benchmarks.grading GOLDS.jsonl ...`.

Each file of gold answers has a row a line, with `answer` and, where there is a worked one that
boxes it, `reference`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from t3d.grading.math import grade_answers

PAIRS = Path(__file__).parents[1] / "tests" / "grading" / "pairs.jsonl"
MONSTERS = ["9^{9^{9^9}}", "9" * 100_000, "{" * 500_000 + "}" * 500_000, "(10^{9})!"]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description="How well and how fast mathematics is graded.")
    parser.add_argument("golds", nargs="*", type=Path)
    parser.add_argument("--num-workers", type=int)
    args = parser.parse_args()
    sets: list[tuple[str, list[str], list[str], list[bool]]] = []
    for path in args.golds:
        rows = read(path)
        golds = [row["answer"] for row in rows]
        outputs = [
            row["reference"] if "\\boxed" in (row["reference"] or "") else f"\\boxed{{{gold}}}"
            for row, gold in zip(rows, golds, strict=True)
        ]
        sets.append((path.stem, outputs, golds, [True] * len(rows)))
    for kind in (True, False):
        rows = [row for row in read(PAIRS) if row["equivalent"] == kind]
        outputs = [f"\\boxed{{{row['answer']}}}" for row in rows]
        name = "equivalent pairs" if kind else "pairs not equivalent"
        sets.append((name, outputs, [row["gold"] for row in rows], [kind] * len(rows)))
    monsters = [f"\\boxed{{{monster}}}" for monster in MONSTERS]
    sets.append(("monsters", monsters, ["42"] * len(monsters), [False] * len(monsters)))

    columns = ("answers", "n", "math-verify right", "string rule right", "timed out", "seconds")
    table = Table(*columns)
    for name, outputs, golds, expected in sets:
        begin = time.perf_counter()
        verdicts = grade_answers(outputs, golds, num_workers=args.num_workers)
        seconds = time.perf_counter() - begin
        both = list(zip(verdicts, expected, strict=True))
        table.add_row(
            name,
            str(len(verdicts)),
            str(sum(verdict.correct == truth for verdict, truth in both)),
            str(sum(verdict.string_correct == truth for verdict, truth in both)),
            str(sum(verdict.timed_out for verdict in verdicts)),
            f"{seconds:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
