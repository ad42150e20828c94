"""One row of results and every decoding setting, for all tests that read some."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

from hypothesis import strategies as st

from t3d.decoding.config import Confidence, DecodingConfig, Remasking
from t3d.evaluation.metrics import wilson_interval
from t3d.evaluation.results import ResultRow

_SETTING = {field.name for field in fields(DecodingConfig)}


def make_row(correct: int = 5, n: int = 10, **values: Any) -> ResultRow:
    """Of `n` problems, `correct` are right; fields of the setting stand among the others."""
    decoding = DecodingConfig(**{k: v for k, v in values.items() if k in _SETTING})
    row: dict[str, Any] = {
        "task": "task",
        "method": "t3d",
        "seed": 0,
        "model": "m",
        "tokens_per_forward": 2.0,
        "tokens_per_pass": 1.5,
        "passes": 9,
        "average_steps": 3.0,
        "average_length": 6.0,
        "truncated": 0.0,
        "agreement": None,
        "tokens_per_second": 10.0,
        "latency_seconds": None,
        "optimizer_steps": 5,
        "tokens_seen": 50,
        "accuracy": correct / n,
        "n": n,
        "ci95": wilson_interval(correct, n),
    }
    row |= {k: v for k, v in values.items() if k not in _SETTING}
    return ResultRow(decoding=decoding, **row)


@st.composite
def decoding_configs(draw: st.DrawFn) -> DecodingConfig:
    """Any that is allowed."""
    window = draw(st.integers(1, 8))
    remasking = draw(st.sampled_from(get_args(Remasking)))
    size = window * draw(st.integers(1, 4))
    return DecodingConfig(
        block_size=size,
        denoising_steps=draw(st.integers(1, 20 if remasking == "ancestral" else window)),
        remasking=remasking,
        confidence_threshold=draw(st.floats(0, 1)),
        temperature=draw(st.floats(0, 2)),
        top_k=draw(st.integers(0, 9)),
        top_p=draw(st.floats(0, 1, exclude_min=True)),
        max_new_tokens=draw(st.integers(1, 999)),
        window=draw(st.sampled_from([None, window])) if size == window else window,
        random_share=draw(st.floats(0, 1)),
        entropy_bound=draw(st.floats(0, allow_infinity=False)),
        confidence=draw(st.sampled_from(get_args(Confidence))),
    )
