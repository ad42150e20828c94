"""Settings of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t3d.core.dtypes import StoredDtype


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an export.

    Args:
        dtype: number format of the weights; by default unchanged.
        max_shard_size: largest size of one safetensors file.
        untie: store the head as a weight of its own where it shares the embedding's.
        block_size: training block size, where config.json lacks it.
        mask_token_id: id of the mask token, where config.json and the tokenizer lack it.
        results: a results.json for the card, which shows this model's rows.
        license: name of the license in the card, such as apache-2.0.
    """

    dtype: StoredDtype | None = None
    max_shard_size: str = "5GB"
    untie: bool = False
    block_size: int | None = None
    mask_token_id: int | None = None
    results: Path | None = None
    license: str | None = None
