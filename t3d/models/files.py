"""What is read of a checkpoint's files before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t3d.core.files import read_object


def check_links(directory: Path) -> None:
    """That nothing of a checkpoint lies outside its directory, templates in folders included.

    Raises:
        ValueError: for a link that leads out; whatever loads a file would follow it.
    """
    home = directory.resolve()
    if home.parent.name == "snapshots":
        # The Hub's cache: files are links into `blobs` beside `snapshots`.
        home = home.parent.parent
    for file in sorted(directory.rglob("*")):
        if file.is_symlink() and not file.resolve().is_relative_to(home):
            raise ValueError(f"{file}: a link out of its directory; copy the file itself")


def read_generation(directory: Path) -> dict[str, Any]:
    """The object of generation_config.json, which transformers passes over where it is broken.

    None is an empty one.

    Raises:
        ValueError: if the file holds no JSON object.
    """
    path = directory / "generation_config.json"
    return read_object(path, "correct or delete it") if path.is_file() else {}
