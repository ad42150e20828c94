"""Checkpoints that are served, and the room that they have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from t3d.core.blocks import BlockLayout
from t3d.core.dtypes import Dtype
from t3d.decoding.config import DecodingConfig
from t3d.decoding.defaults import read_generation_config
from t3d.models.loading import LanguageModel, from_pretrained


@dataclass(frozen=True)
class Served:
    """A checkpoint that is served."""

    name: str
    lm: LanguageModel
    decoding: DecodingConfig
    """The setting of requests that name none."""

    @property
    def positions(self) -> int:
        return self.lm.model.config.max_position_embeddings


def by_name(models: Iterable[str]) -> dict[str, str]:
    """Paths by the names that users call them by.

    Raises:
        ValueError: for an argument without name or path, and a name that is given twice.
    """
    found: dict[str, str] = {}
    for model in models:
        name, equals, path = model.partition("=")
        if not equals:
            name, path = Path(model).name if Path(model).is_dir() else model, model
        if not name or not path:
            raise ValueError(f"{model}: give a checkpoint as PATH or NAME=PATH")
        if name in found:
            raise ValueError(
                f"{model}: {found[name]} is served as {name!r} already; give NAME=PATH"
            )
        found[name] = path
    return found


def load(name: str, path: str, decoding: DecodingConfig, dtype: Dtype) -> Served:
    """Load a checkpoint.

    Args:
        name: what users call it.
        path: a directory, a Hub name or a built-in name.
        decoding: its setting, unless that is the default and the checkpoint has one.
        dtype: number format of weights and arithmetic.

    Raises:
        ValueError: if it cannot be loaded.
    """
    if decoding == DecodingConfig():
        decoding = read_generation_config(Path(path)) or decoding
    return Served(name, from_pretrained(path, dtype=getattr(torch, dtype)), decoding)


def room(served: Served, config: DecodingConfig, length: int) -> int:
    """Number of response tokens that fit behind a prompt of `length` tokens, in whole blocks."""
    return BlockLayout(config.block_size).floor(served.positions) - length
