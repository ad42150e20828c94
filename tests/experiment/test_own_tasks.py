"""Several tasks of one's own in one recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import t3d
from t3d.evaluation.config import EvaluationConfig
from t3d.experiment.recipe import DataConfig, RunConfig
from t3d.experiment.run import prepare


def folder(path: Path, train: str, test: str) -> str:
    path.mkdir(parents=True)
    for name, question in (("train", train), ("test", test)):
        line = json.dumps({"question": question, "answer": "1"})
        (path / f"{name}.jsonl").write_text(line + "\n")
    return str(path)


def recipe(*tasks: str) -> RunConfig:
    decoding = t3d.DecodingConfig(max_new_tokens=8)
    return RunConfig(
        task=list(tasks),
        data=DataConfig(num_prompts=2, num_problems=1),
        rollout=t3d.RolloutConfig(decoding),
        evaluation=EvaluationConfig((decoding,), measure_latency=False),
    )


def test_one_folder_by_two_paths_is_refused(tmp_path: Path) -> None:
    mine = folder(tmp_path / "mine", "How?", "Why?")
    with pytest.raises(ValueError, match="two of them are mine@"):
        recipe(mine, f"{mine}/.").problem_sets()


def test_folders_of_one_name_are_told_apart_by_their_problems(tmp_path: Path) -> None:
    one = folder(tmp_path / "a/mine", "How?", "Why?")
    same = folder(tmp_path / "b/mine", "Where?", "Why?")
    other = folder(tmp_path / "c/mine", "Where?", "When?")
    with pytest.raises(ValueError, match="two of them are mine@"):
        recipe(one, same).prompt_set()
    assert len({task.name for task in recipe(one, other).problem_sets()}) == 2


def test_a_task_may_not_train_on_what_another_one_evaluates(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", "How?", "Why?")
    other = folder(tmp_path / "other", "Why?", "When?")
    with pytest.raises(ValueError, match="another task than .*one: asks what problem test/1"):
        prepare(recipe(one, other))
    apart = folder(tmp_path / "apart", "Where?", "When?")
    prepare(recipe(one, apart))
