"""Number formats of weights and arithmetic, by the names that commands and files use."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
