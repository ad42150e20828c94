"""Every number of every config has a range, which NaN and infinities fail."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from t3d.analysis.config import AnalysisConfig
from t3d.bench.config import DecodeSettings
from t3d.core.ranges import check_number
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.evaluation.config import EvaluationConfig, WatchConfig
from t3d.experiment.recipe import CompareConfig, DataConfig, RunConfig
from t3d.tasks.chat import ChatData
from t3d.training.config import (
    LoraSettings,
    MethodConfig,
    ModelShape,
    PretrainConfig,
    TrainingConfig,
)
from t3d.training.methods import METHODS, build_method

CONFIGS: list[Any] = [
    *(RunConfig(), CompareConfig(), DataConfig(), RolloutConfig(), DecodingConfig()),
    *(EvaluationConfig(), WatchConfig(), AnalysisConfig(), DecodeSettings(), ChatData("a.jsonl")),
    *(LoraSettings(), MethodConfig("t3d"), ModelShape(), PretrainConfig(), TrainingConfig()),
    *{type(method.noiser): method.noiser for method in METHODS.values()}.values(),
    *{type(method.objective): method.objective for method in METHODS.values()}.values(),
]
ENDLESS = {"save_seconds", "patience"}
"""Fields for which infinity means something."""


NUMBERS = [
    (config, field.name, str(field.type))
    for config in CONFIGS
    for field in fields(config)
    if re.search(r"\b(int|float)\b", str(field.type))
]


@pytest.mark.parametrize(
    ("config", "name", "kind"),
    NUMBERS,
    ids=lambda x: type(x).__name__ if is_dataclass(x) else str(x),
)
def test_every_number_of_every_config_has_a_range(config: Any, name: str, kind: str) -> None:
    wrong: list[Any] = [math.nan, -math.inf, True, "4", [[]]]
    wrong += [math.inf] * (name not in ENDLESS) + [-1] * ("seed" not in name)
    wrong += [2.5] * ("float" not in kind) + [None] * ("None" not in kind)
    for value in wrong:
        given = [value] if kind.startswith("list") else value
        if kind.startswith("tuple"):
            given = (value, value) if kind == "tuple[int, int]" else (value,)
        with pytest.raises(ValueError, match=rf"{name} must "):
            replace(config, **{name: given})
    with pytest.raises(ValueError, match=rf"{name} must be a "):
        replace(config, **{name: 1 if kind.startswith(("list", "tuple")) else [1]})


@pytest.mark.parametrize(
    ("value", "interval", "words"),
    [
        (0, "[1, inf)", "n must be at least 1, got 0"),
        (-1, "[0, inf)", "n must not be negative, got -1"),
        (0, "(0, inf)", "n must be positive, got 0"),
        (1.0, "[0, 1)", r"n must lie in \[0, 1\), got 1.0"),
        (0, "(0, 1]", r"n must lie in \(0, 1\], got 0"),
        (math.inf, "[0, inf)", "n must be a finite number, got inf"),
        (math.nan, "[0, inf]", "n must be a finite number, got nan"),
        (10**400, "[0, inf)", "n must be a finite number"),
        (None, "[0, 1]", "n must be a number, got None"),
    ],
    ids=range(9),
)
def test_what_is_outside_is_told_in_words(value: object, interval: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        check_number("n", value, interval)


def test_the_ends_belong_to_an_interval_or_not() -> None:
    for value, interval in (
        (1, "[1, inf)"),
        (1, "(0, 1]"),
        (math.inf, "[0, inf]"),
        (0.0, "[0, 1)"),
    ):
        check_number("n", value, interval)


@pytest.mark.parametrize(
    ("method", "part", "setting"),
    [
        ("t3d", "objective", {"beta": -1.0}),
        ("t3d", "objective", {"alpha": math.nan}),
        ("naive_td", "noiser", {"level_power": -1}),
        ("naive_td", "noiser", {"level_power": math.inf}),
        ("naive_td", "noiser", {"levels": [0.5, math.nan]}),
        ("dparallel", "objective", {"scale": 0}),
    ],
)
def test_settings_of_methods_are_checked(method: str, part: str, setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=f"method {method}: {part}: {name} must "):
        build_method(replace(MethodConfig(method), **{part: setting}))
