"""Provenance of an artefact: versions, configuration, seed and weights that it was made from."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from t3d import __version__
from t3d.core.files import plain

COSTS = ("optimizer_steps", "tokens_seen", "tokens_decoded")
"""Keys of a student's provenance that say what it cost, and that add up over rounds."""
PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    own = {"python": platform.python_version(), "t3d": __version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def provenance(
    *, config: Mapping[str, Any], seed: int, model: str, weights_hash: str | None
) -> dict[str, Any]:
    """The provenance of an artefact, as JSON to be kept beside it.

    Args:
        config: everything that was asked for; values that JSON lacks become strings.
        seed: the seed of the whole run.
        model: the model's path or name.
        weights_hash: result of `hash_weights`; None for weights that only live in memory.
    """
    return {
        "packages": package_versions(),
        "platform": platform.platform(),
        "config": plain(dict(config)),
        "seed": seed,
        "model": model,
        "weights_hash": weights_hash,
    }


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
