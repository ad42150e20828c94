"""Files that are written atomically, and output directories that belong to one command's run."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 10 * 2**20
"""Largest JSON file that is read, in bytes; the largest published index of weights has 2 MiB."""
RECIPE = "recipe.json"
"""File that records what an output directory was claimed for."""
ADAPTATION = "adaptation"
"""Folder that claims a run's directory for adapting its teacher, before the run itself begins."""


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is either there as a whole or not there at all, even after a kill.

    Raises:
        ValueError: if the system refuses (full disk, no permission); nothing is left behind.
    """
    # The process id keeps ranks that write the same manifest apart.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written: {error.strerror}; "
            "free the space or choose another place, then run the same again"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def check_regular(path: Path) -> None:
    """Check that a path is a regular file, if it exists; reading a pipe would wait for a writer.

    Raises:
        OSError: for a folder, pipe or device.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: for anything else.
    """
    check_regular(path)
    return path.read_bytes()


def plain(value: Any) -> Any:
    """A value as JSON has it: what JSON lacks becomes text, numbers that are not finite too."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def read_object(path: Path, remedy: str = "copy it again") -> dict[str, Any]:
    """A JSON object of bounded size, as JSON has it: without NaN and infinities.

    Raises:
        ValueError: naming the file, if it holds none.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        document = parse_json(read_file(path).decode(), parse_constant=refuse_constant)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {first_words(error)}; {remedy}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a JSON object; {remedy}")
    return document


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON whose strings are valid Unicode, so that they can be written again.

    Raises:
        ValueError: for anything else, lone surrogates and deep nesting included.
    """
    try:
        value = json.loads(text, **options)
        # Half of a surrogate pair can stand in JSON as an escape, but UTF-8 has no bytes for it.
        if b"\\ud" in (text.encode() if isinstance(text, str) else text).lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"holds half a character ({half!a}), which is no text") from None
    return value


def refuse_constant(name: str) -> None:
    """An argument `parse_constant` of `parse_json`: NaN and infinities are no JSON."""
    raise ValueError(f"{name} is no number")


def first_words(error: BaseException) -> str:
    """The message of an error, as one line of at most 200 characters."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        # Without number and path, since callers name the path themselves.
        said = error.strerror
    said = re.sub(r"\[Errno -?\d+\] ", "", said)
    return " ".join((said or type(error).__name__).split())[:200]


def check_output(directory: Path, *own: str) -> None:
    """Check that an output directory is new, empty, or was made by the same kind of command.

    Hidden files, and what a killed process left half written, do not count.

    Args:
        directory: the output directory.
        own: names of files or folders; a directory that holds one of them is the command's own.

    Raises:
        ValueError: for any other directory, and for the current one, which is also what an empty
            name stands for.
    """
    if directory == Path():
        raise ValueError("output: the current directory, or no name; name a directory of its own")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: exists already and is a file; choose another output")
    found = [path.name for path in directory.glob("[!.]*") if path.suffix != ".partial"]
    # The marks are looked for last: another rank may have written one since the listing.
    if found and not any((directory / name).exists() for name in own):
        raise ValueError(
            f"{directory}: exists already and holds {min(found)}, which is not of the same making; "
            "choose a new or empty directory"
        )


def check_file(path: Path) -> None:
    """Check an output that is one file: it has a name, which no folder, pipe or device has.

    Raises:
        ValueError: for anything else.
    """
    if path == Path() or (path.exists() and not path.is_file()):
        raise ValueError(f"output: {str(path)!r} names no file; name one of its own")


def make_directory(directory: Path) -> None:
    """Make an output's directory, with those above it, before anything is computed for it.

    Raises:
        ValueError: if the system refuses.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{directory}: no directory can be made there ({error.strerror}); choose another output"
        ) from None


def _without_circumstances(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the keys that change no result."""
    return {
        key: _without_circumstances(value) if isinstance(value, dict) else value
        for key, value in recipe.items()
        if key not in ("output", "num_workers", "save_seconds")
    }


def claim(directory: Path, recipe: dict[str, Any], weights_hash: str | None) -> None:
    """Record in a new directory what will be made there, or check that it is the same.

    Raises:
        ValueError: if something else was made there, or the directory cannot be.
    """
    path = directory / RECIPE
    check_output(directory, RECIPE, ADAPTATION)
    make_directory(directory)
    recipe = plain(recipe) | {"weights_hash": weights_hash}
    # Recipes of earlier versions, and those that decode nothing, do not name the dtype.
    recipe = {"dtype": "float32"} | _without_circumstances(recipe)
    if not path.exists():
        write_json(path, recipe)
        return
    before = read_object(path, "choose another output")
    before = {"dtype": "float32"} | _without_circumstances(before)
    changed = sorted(key for key in recipe | before if recipe.get(key) != before.get(key))
    if changed:
        raise ValueError(
            f"{directory}: holds what another recipe made ({', '.join(changed)} differ); "
            "choose another output or delete it"
        )
