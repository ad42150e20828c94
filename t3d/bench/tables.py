"""Rows of a benchmark for the terminal, and on disk."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from t3d.bench.decode import DecodeRow
from t3d.bench.roofline import Rates
from t3d.bench.train import TrainRow
from t3d.core.files import write_json
from t3d.core.provenance import package_versions

"""As `--rates` of `t3d run` looks for them."""


def decode_table(rows: Sequence[DecodeRow], rates: Rates) -> Table:
    """One line a row, a section a setting."""
    table = _table(
        f"Decoding {rows[0].model}, blocks of {rows[0].block_size}, {_where(rows[0])}",
        "bound: the share of the speed that memory or arithmetic allow at what a large copy "
        f"({rates.bytes_per_second / 1e9:.0f} GB/s) and a large matrix product "
        f"({rates.flops_per_second / 1e9:,.0f} GFLOP/s) reach here",
    )
    names = ("batch", "steps", "tokens/s", "latency\n(ms)", "passes/\nblock", "peak\n(GB)")
    _columns(table, "engine", *names, "bound\n(%)", "of t3d\n(x)")
    before = None
    for row in rows:
        setting = (row.batch_size, row.denoising_steps)
        if before not in (None, setting):
            table.add_section()
        before = setting
        table.add_row(
            row.engine,
            str(row.batch_size),
            str(row.denoising_steps),
            f"{row.tokens_per_second:,.1f}",
            "" if row.latency_s is None else f"{1000 * row.latency_s:,.0f}",
            f"{row.passes_per_block:.2f}",
            _gigabytes(row.peak_memory_bytes),
            f"{100 * row.roofline_share:.0f}",
            f"{row.ratio_to_ours:.2f}",
        )
    return table


def train_table(row: TrainRow, rates: Rates) -> Table:
    """A table of one line."""
    table = _table(
        f"Training {row.model}, {_where(row)}",
        "MFU: the share of what a large matrix product reaches here "
        f"({rates.flops_per_second / 1e9:,.0f} GFLOP/s)",
    )
    names = ("batch", "micro-\nbatch", "trajectories/s", "tokens/s", "peak\n(GB)", "MFU\n(%)")
    _columns(table, "method", *names)
    table.add_row(
        row.method,
        str(row.batch_size),
        str(row.micro_batch_size),
        f"{row.trajectories_per_second:.3g}",
        f"{row.tokens_per_second:,.0f}",
        _gigabytes(row.peak_memory_bytes),
        f"{100 * row.mfu:.0f}",
    )
    return table


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


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )


def _columns(table: Table, name: str, *numbers: str) -> None:
    table.add_column(name)
    for number in numbers:
        table.add_column(number, justify="right")
