"""Rows of a benchmark for the terminal, and on disk."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType

from t3d.bench.decode import DecodeRow
from t3d.bench.roofline import Rates
from t3d.bench.train import TrainRow
from t3d.core.files import write_json
from t3d.core.provenance import package_versions
from t3d.report.sheets import Entry, Sheet


def decode_table(rows: Sequence[DecodeRow], rates: Rates) -> RenderableType:
    """One line a row, a group a setting."""
    settings = groupby(rows, key=lambda row: (row.batch_size, row.denoising_steps))
    groups = [
        [
            [
                Entry(row.engine),
                Entry(str(row.batch_size)),
                Entry(str(row.denoising_steps)),
                Entry(f"{row.tokens_per_second:,.1f}"),
                Entry("" if row.latency_s is None else f"{1000 * row.latency_s:,.0f}"),
                Entry(f"{row.passes_per_block:.2f}"),
                Entry(_gigabytes(row.peak_memory_bytes)),
                Entry(f"{100 * row.roofline_share:.0f}"),
                Entry(f"{row.ratio_to_ours:.2f}"),
            ]
            for row in group
        ]
        for _, group in settings
    ]
    header = ["engine", "batch", "steps", "tokens/s", "latency\n(ms)", "passes/\nblock"]
    header += ["peak\n(GB)", "bound\n(%)", "of t3d\n(x)"]
    title = f"Decoding {rows[0].model}, blocks of {rows[0].block_size}, {_where(rows[0])}"
    note = (
        "bound: the share of the speed that memory or arithmetic allow at what a large copy "
        f"({rates.bytes_per_second / 1e9:.0f} GB/s) and a large matrix product "
        f"({rates.flops_per_second / 1e9:,.0f} GFLOP/s) reach here"
    )
    return Sheet(title, header, groups, note, num_names=1)


def train_table(row: TrainRow, rates: Rates) -> RenderableType:
    """A table of one line."""
    columns = {
        "method": row.method,
        "batch": str(row.batch_size),
        "micro-\nbatch": str(row.micro_batch_size),
        "trajectories/s": f"{row.trajectories_per_second:.3g}",
        "tokens/s": f"{row.tokens_per_second:,.0f}",
        "peak\n(GB)": _gigabytes(row.peak_memory_bytes),
        "MFU\n(%)": f"{100 * row.mfu:.0f}",
    }
    note = (
        "MFU: the share of what a large matrix product reaches here "
        f"({rates.flops_per_second / 1e9:,.0f} GFLOP/s)"
    )
    line = [Entry(text) for text in columns.values()]
    title = f"Training {row.model}, {_where(row)}"
    return Sheet(title, list(columns), [[line]], note, num_names=1)


def save(path: Path, rows: Sequence[DecodeRow | TrainRow], rates: Rates) -> None:
    """Write the rows and what they were measured with."""
    write_json(path, {**head(), "rates": asdict(rates), "rows": [asdict(row) for row in rows]})


def head() -> dict[str, Any]:
    """When, where, by which command (of paths the last names) and with which versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(word).name if Path(word).is_absolute() else word for word in sys.argv],
        "versions": package_versions(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def _where(row: DecodeRow | TrainRow) -> str:
    return f"{row.dtype} on {row.device}"


def _gigabytes(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 1e9:.2f}"
