"""Files of a checkpoint that are read before anything is built: bounded JSON, and no links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 10 * 2**20
"""Of config.json and of the index; the largest published index has 2 MiB."""


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


def read_object(path: Path, remedy: str = "copy it again") -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if the file holds none, or is too large to be one of a checkpoint.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: larger than {MAX_JSON_BYTES} bytes; {remedy}")
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {first_words(error)}; {remedy}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a JSON object; {remedy}")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def first_words(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
