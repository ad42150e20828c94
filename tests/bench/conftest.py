"""What the tests of benchmarks share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t3d.bench.subject import random_model
from t3d.models import LanguageModel

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.5,
}


@pytest.fixture
def lm() -> LanguageModel:
    """A fresh one, since training changes it."""
    return random_model(SHAPE, torch.device("cpu"), "float32")
