"""Number formats by the names that commands, recipes and files use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16"]
"""Number format of arithmetic: auto is bfloat16 on a GPU and float32 on a CPU."""
StoredDtype = Literal["float32", "bfloat16", "float16"]
"""Number format of the weights in a file."""


def torch_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The number format in which a device computes.

    Raises:
        ValueError: for an unknown name.
    """
    import torch

    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")
    on_gpu = device.type == "cuda"
    return torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and on_gpu) else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a number format in files, such as bfloat16."""
    return str(dtype).removeprefix("torch.")
