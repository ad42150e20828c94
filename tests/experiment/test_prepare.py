"""What is refused before a run does any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t3d.decoding.config import DecodingConfig
from t3d.experiment.rounds import check_recipe
from t3d.experiment.rows import own_decoding
from t3d.experiment.run import prepare
from t3d.training.config import MethodConfig
from tests.experiment.test_reinforcement import recipe


@pytest.mark.parametrize(
    ("line", "name", "message"),
    [
        ({"domain": "code", "tests": ["assert f(1)"]}, "free", "answers: teacher: programs are gr"),
        ({"domain": "code"}, "labelled", "answers: labels: .* has no answer, so no response to it"),
        ({}, "labelled", "answers: labels: .* has no answer, so no response to it is right; add"),
        (
            {},
            "sft",
            "labelled training needs a worked answer; a line of your own has it",
        ),
    ],
)
def test_prompts_that_no_method_learns_from_are_refused_before_any_work(
    tmp_path: Path, line: dict[str, Any], name: str, message: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"question": "What is f?", **line}))
    config = recipe(tmp_path / "run")
    methods = config.methods | {"sft": MethodConfig("sft")}
    config = replace(
        config,
        task="mbpp" if "domain" in line else "mini_gsm",
        data=replace(config.data, prompts=path, num_problems=1),
        methods={name: replace(methods[name], start=None)},
    )
    with pytest.raises(ValueError, match=message):
        prepare(config)


def test_a_model_that_cannot_draft_is_refused_before_any_work(tmp_path: Path) -> None:
    config = recipe(tmp_path / "run")
    drafted = config.methods["free"].student_decoding | {
        "draft_states": 2,
        "draft_model": str(tmp_path / "none"),
    }
    method = replace(config.methods["free"], student_decoding=drafted)
    with pytest.raises(ValueError, match="none: no such checkpoint"):
        prepare(replace(config, methods={"free": method}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": ""}, "labelled: start='' is neither a method that the recipe names before it"),
        ({"start": "free"}, "labelled: start='free' is neither a method that the recipe names be"),
        ({"advantage": {"group_size": 3}}, "batch_size=8 is no multiple of advantage.group_size=3"),
        ({"advantage": {"speed": 1.0}}, "lightningrl: advantage: unknown key 'speed'"),
        ({"verify": True}, "lightningrl: verify: no teacher's trajectory has the student's prob"),
        ({"student_decoding": {"temperature": 0.5}}, "student_decoding: a policy gradient needs"),
        ({"student_decoding": {"top_k": 5}}, "the recorded ones are untempered; set temperature"),
    ],
)
def test_mistakes_in_methods_are_named(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    config = recipe(tmp_path)
    methods = config.methods | {"labelled": replace(config.methods["labelled"], **settings)}
    with pytest.raises(ValueError, match=message):
        check_recipe(replace(config, methods=methods))


def test_only_reinforcement_has_rewards_and_draws_untempered() -> None:
    with pytest.raises(ValueError, match="method rtd: advantage: only reinforcement has rewards"):
        own_decoding(DecodingConfig(), MethodConfig("rtd", advantage={"group_size": 4}))
    for name in ("tracerl", "lightningrl", "rtd_rl"):
        assert own_decoding(DecodingConfig(), MethodConfig(name), student=True).is_untempered
