"""Verified decoding of a comparison's students: accuracy, tokens a pass and speed beside the rest.

python -m benchmarks.verified runs/mini_compare --problems 100

Every student decodes left to right and in the order of confidence, each step a pass and verified;
with few steps; dynamically; and as the drafter of its teacher, whose output it is then. The rows
are printed as Markdown, means over seeds, and written to benchmarks/verified.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import t3d
from t3d.core.files import write_json
from t3d.core.provenance import package_versions
from t3d.report.sheets import NONE, Entry, Sheet, percent

TEACHER = "mini_teacher"
FEW = 8
"""Number of problems that are decoded one at a time."""


def settings_of(block_size: int, student: str) -> dict[str, t3d.DecodingConfig]:
    """Settings by name; a chain holds all steps, and orders have room for four times as many."""
    confident = t3d.DecodingConfig(block_size, block_size, max_new_tokens=96)
    in_order = replace(confident, remasking="sequential")
    chain = replace(in_order, draft_states=block_size)
    return {
        "by confidence": confident,
        "verified": replace(confident, draft_states=4 * block_size),
        "left to right": in_order,
        "left to right, verified": chain,
        "the teacher, it drafts": replace(chain, draft_model=student),
        "dynamic 0.9": replace(confident, remasking="low_confidence_dynamic"),
        "two steps": replace(confident, denoising_steps=2),
    }


def measure(run: Path, task: str, num_problems: int) -> Iterator[dict[str, Any]]:
    """A row for each student, block size and setting."""
    benchmark = t3d.get_task(task)
    problems = benchmark.examples("test", num_problems)
    teacher = t3d.from_pretrained(TEACHER)
    students = {("original", 0): TEACHER}
    # Seed by seed, so that rows written so far compare all methods.
    for path in sorted(run.glob("checkpoints/*/seed*"), key=lambda path: path.name):
        students[path.parent.name, int(path.name.removeprefix("seed"))] = str(path)
    for (method, seed), name in students.items():
        student = t3d.from_pretrained(name)
        for block_size, (label, setting) in [
            (size, named) for size in (4, 8, 16) for named in settings_of(size, name).items()
        ]:
            # Blocks of 16 only where the order is known: 64 states of 16 tokens are for no CPU.
            if block_size == 16 and setting.remasking != "sequential":
                continue
            lm = student if setting.draft_model is None else teacher
            row, alone = (
                t3d.evaluate(
                    lm, benchmark, chosen, setting, batch_size=batch, seed=seed, progress=False
                ).row
                for chosen, batch in ((problems, 64), (problems[:FEW], 1))
            )
            assert row.tokens_computed is not None
            yield {
                "method": method,
                "seed": seed,
                "block_size": block_size,
                "setting": label,
                "n": row.n,
                "accuracy": row.accuracy,
                "tokens_per_pass": row.tokens_per_pass,
                "computed_per_token": row.tokens_computed / (row.average_length * row.n),
                "accepted": row.accepted,
                "tokens_per_second_64": row.tokens_per_second,
                "tokens_per_second_1": alone.tokens_per_second,
            }


def sheet(rows: list[dict[str, Any]], task: str) -> Sheet:
    """Means over seeds, a group a method and block size."""
    groups: dict[Any, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        own = groups.setdefault((row["method"], row["block_size"]), {})
        own.setdefault(row["setting"], []).append(row)
    lines = []
    for (method, block_size), settings in groups.items():
        lines.append([])
        for setting, own in settings.items():
            accepted = [row["accepted"] for row in own if row["accepted"] is not None]
            names = (method, str(block_size), setting)
            numbers = [
                percent(mean(row["accuracy"] for row in own)),
                f"{mean(row['tokens_per_pass'] for row in own):.2f}",
                f"{mean(row['computed_per_token'] for row in own):.1f}",
                percent(mean(accepted)) if accepted else NONE,
                *(f"{mean(row[f'tokens_per_second_{b}'] for row in own):.0f}" for b in (1, 64)),
            ]
            lines[-1].append([Entry(text) for text in (*names, *numbers)])
    header = ["method", "block", "setting", "accuracy", "tokens/\npass", "computed/\ntoken"]
    header += ["accepted\n(%)", "tokens/s,\nbatch 1", "tokens/s,\nbatch 64"]
    note = f"{task}, {rows[0]['n']} problems, temperature 0.1, means over seeds."
    return Sheet("Verified decoding", header, lines, note, num_names=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--task", default="mini_gsm")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    rows = []
    for row in measure(asked.run, asked.task, asked.problems):
        rows.append(row)
        print({key: value for key, value in row.items() if key != "n"}, file=sys.stderr)
        write_json(asked.output, {"task": asked.task, "packages": package_versions(), "rows": rows})
    print(sheet(rows, asked.task).markdown())


if __name__ == "__main__":
    main()
