"""Checks of a checkpoint's files that come before any model is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from t3d.core.files import read_object


def check_links(directory: Path) -> None:
    """Check that no file of a checkpoint, in subfolders too, is a link out of its directory.

    Raises:
        ValueError: for a link that leads out, or to nothing, and for a pipe, which whatever
            loads a file would follow or wait for.
    """
    home = Path(os.path.realpath(directory))
    if home.parent.name == "snapshots":
        # The Hub's cache: files are links into `blobs` beside `snapshots`.
        home = home.parent.parent
    for file in sorted(directory.rglob("*")):
        if not file.is_symlink():
            if not file.is_file() and not file.is_dir():
                raise ValueError(f"{file}: no regular file; copy it again")
            continue
        # `Path.resolve` raises errors of other kinds for links in a ring.
        if not Path(os.path.realpath(file)).is_relative_to(home):
            raise ValueError(f"{file}: a link out of its directory; copy the file itself")
        if not file.exists():
            raise ValueError(f"{file}: a link to nothing; copy the file itself, or delete it")


def read_generation(directory: Path) -> dict[str, Any]:
    """The object of generation_config.json, empty if there is no such file.

    transformers would ignore a broken file.

    Raises:
        ValueError: if the file holds no JSON object.
    """
    path = directory / "generation_config.json"
    return read_object(path, "correct or delete it") if path.is_file() else {}
