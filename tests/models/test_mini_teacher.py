"""The model that ships with the package is what its provenance says, and shows the phenomenon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from t3d.decoding.config import DecodingConfig
from t3d.evaluation.evaluate import evaluate
from t3d.models.loading import BUILT_IN, LanguageModel, from_pretrained
from t3d.provenance import hash_weights
from t3d.tasks import get_task

DIRECTORY = BUILT_IN["mini_teacher"]
RECIPE = Path(__file__).parents[2] / "t3d" / "recipes" / "mini_teacher.yaml"


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return from_pretrained("mini_teacher")


def test_it_is_small_and_holds_no_pickle():
    files = [path for path in DIRECTORY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


def test_its_provenance_is_the_recipe():
    record = json.loads((DIRECTORY / "provenance.json").read_text(encoding="utf-8"))
    assert record["weights_hash"] == hash_weights(DIRECTORY)
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for key in ("training", "shape"):
        assert {name: record["config"][key][name] for name in recipe[key]} == recipe.pop(key)
    assert {name: record["config"][name] for name in recipe} == recipe


def test_its_tokenizer_round_trips_any_text(teacher: LanguageModel):
    for text in ("Tom has 12 apples.", "ünïcode \t  spaces \n", "<|MASK|>"):
        ids = teacher.tokenizer.encode(text, add_special_tokens=False)
        assert teacher.tokenizer.decode(ids) == text
    assert teacher.tokenizer.convert_tokens_to_ids("<|MASK|>") == teacher.mask_token_id


def test_it_solves_problems_at_full_steps_and_collapses_at_one(teacher: LanguageModel):
    task = get_task("mini_gsm")
    problems = task.examples("dev", 60)

    def accuracy(steps: int) -> float:
        config = DecodingConfig(denoising_steps=steps, max_new_tokens=96)
        return evaluate(teacher, task, problems, config, progress=False).row.accuracy

    assert accuracy(4) >= 0.8
    assert accuracy(1) <= 0.4
