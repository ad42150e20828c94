"""Commands that fetch and convert the benchmarks' files."""

from __future__ import annotations

from pathlib import Path

from t3d.cli.common import print_paths
from t3d.core.files import check_file


def download_command(
    names: list[str], folder: Path | None = None, *, progress: bool = True
) -> None:
    """Fetch benchmarks from the Hugging Face Hub, and check their content.

    The training sets of T3D's authors (math_train, primeintellect) are not checked: they are taken
    as the Hub has them, and each line's `source` names the revision.

    Files that are there already are checked and kept. Where there is no network, give --data
    FOLDER to the commands that read them instead.

    Example:
      t3d data download gsm8k humaneval

    Args:
        names: gsm8k, math500, humaneval, mbpp, math_train or primeintellect.
        folder: where the files go; by default T3D_DATA, or ~/.cache/t3d/data.
        progress: show a progress bar.
    """
    from t3d.tasks.data import download

    for path in download(names, folder, progress=progress):
        print_paths(path)


def convert_command(source: Path, output: Path, dataset: str) -> None:
    """Turn a file in the format of T3D's authors into one that t3d reads.

    Example:
      t3d data convert MATH_train.json --output data/math_train.jsonl --dataset math_train

    Args:
        source: a JSON list of problems.
        output: the .jsonl to write.
        dataset: its name, which the problems' ids begin with.
    """
    check_file(output)

    from t3d.tasks.upstream import convert_upstream

    num = convert_upstream(source, output, dataset)
    print(f"{output}: {num} problems")
