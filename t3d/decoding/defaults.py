"""The decoding setting that a checkpoint's generation_config.json holds."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from t3d.core.files import write_json
from t3d.decoding.config import DecodingConfig
from t3d.models.files import read_generation

_SHARED = {"temperature", "top_k", "top_p", "max_new_tokens"}
"""Keys of generation_config.json that other tools write, too."""


def write_generation_config(checkpoint: Path, decoding: DecodingConfig) -> None:
    """Write a decoding setting into a checkpoint's `generation_config.json`, atomically.

    Other keys are kept. `do_sample` is set to agree with the temperature.

    Raises:
        ValueError: if there is no such directory, or the file there is no JSON object.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: no such checkpoint directory")
    # transformers warns of a temperature above 0 without do_sample.
    values = asdict(decoding) | {"do_sample": decoding.temperature > 0}
    write_json(checkpoint / "generation_config.json", read_generation(checkpoint) | values)


def read_generation_config(checkpoint: Path) -> DecodingConfig | None:
    """The decoding settings in a checkpoint's `generation_config.json`; None if it names none.

    Keys of other tools, such as `top_k`, count only beside those of t3d.

    Raises:
        ValueError: if the file is no JSON object or a value is of no use.
    """
    path = checkpoint / "generation_config.json"
    document = read_generation(checkpoint)
    names = [field.name for field in fields(DecodingConfig)]
    values = {name: document[name] for name in names if name in document}
    if values.keys() <= _SHARED:
        return None
    try:
        return DecodingConfig(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; correct it or run `t3d calibrate` again") from None
