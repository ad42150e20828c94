"""Command that hands a checkpoint to other tools: export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t3d.cli.common import print_paths, show
from t3d.interop.checkpoints.config import ExportConfig


def export_command(
    model: str | None = None,
    output: Path | None = None,
    check: Path | None = None,
    **settings: Any,
) -> None:
    """Write a checkpoint for transformers, SGLang and LMDeploy, or check such a folder.

    The check loads the folder with transformers alone and with t3d, compares their logits, and
    reads what the engines read. It fails where one goes wrong that the folder's card names.

    Examples:
      t3d export --model runs/student --output export/student --license apache-2.0
      t3d export --check export/student

    Args:
        model: a checkpoint directory, a Hub name, or mini_teacher.
        output: the new directory.
        check: a folder to check, in place of model and output; nothing in it is changed.
    """
    config = ExportConfig(**settings)
    if check is not None:
        if model is not None or output is not None:
            raise ValueError("--check takes neither --model nor --output; export first, then check")
        _check(check)
        return
    if model is None or output is None:
        raise ValueError("give --model and --output to export, or --check to check a folder")

    from t3d.interop.checkpoints import layout

    layout.export(model, output, config)
    print_paths(output)


def _check(directory: Path) -> None:
    """Print what goes wrong where.

    Raises:
        ValueError: if it concerns one that the folder says it is for.
    """
    from rich.table import Table

    from t3d.interop.checkpoints import verify

    findings, claimed = verify.check(directory), verify.claims(directory)
    table = Table("where", "claimed", "what goes wrong", "remedy", show_lines=True)
    for finding in findings:
        named = "yes" if finding.consumer in claimed else "no"
        table.add_row(finding.consumer, named, finding.problem, finding.remedy)
    if findings:
        show(table)
    failing = sorted({f.consumer for f in findings if f.fatal and f.consumer in claimed})
    if failing:
        raise ValueError(f"{directory}: does not work in {', '.join(failing)}")
    print(f"{directory}: works in {', '.join(sorted(claimed))}")
