"""What made an artefact (versions, config, seed, weights), and files that appear whole or not."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from t3d import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    own = {"python": platform.python_version(), "t3d": __version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def provenance(
    *, config: Mapping[str, Any], seed: int, model: str, weights_hash: str | None
) -> dict[str, Any]:
    """What to keep beside an artefact, as JSON.

    Args:
        config: everything that was asked for; values that JSON lacks become strings.
        seed: the seed of the whole run.
        model: the model's path or name.
        weights_hash: as `hash_weights` gives it; None for weights that only live in memory.
    """
    return {
        "packages": package_versions(),
        "platform": platform.platform(),
        "config": json.loads(json.dumps(dict(config), default=str)),
        "seed": seed,
        "model": model,
        "weights_hash": weights_hash,
    }


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(directory: Path) -> str:
    """sha256 over the bytes of a checkpoint's safetensors files, in the order of their names.

    Raises:
        ValueError: if there are none.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{directory}: no *.safetensors files; name a checkpoint directory")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


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


def _without_circumstances(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what changes no result."""
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
    path = directory / "recipe.json"
    recipe = json.loads(json.dumps(recipe, default=str)) | {"weights_hash": weights_hash}
    recipe = _without_circumstances(recipe)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{directory}: no directory can be made there ({error.strerror}); choose another output"
        ) from None
    if not path.exists():
        write_json(path, recipe)
        return
    try:
        before = _without_circumstances(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); choose another output") from None
    changed = sorted(key for key in recipe | before if recipe.get(key) != before.get(key))
    if changed:
        raise ValueError(
            f"{directory}: holds what another recipe made ({', '.join(changed)} differ); "
            "choose another output or delete it"
        )
