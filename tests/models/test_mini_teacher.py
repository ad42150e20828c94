"""The model that ships with the package is what its provenance says, and shows the phenomenon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from t3d.core.provenance import hash_weights
from t3d.decoding.config import DecodingConfig
from t3d.evaluation.evaluate import evaluate
from t3d.evaluation.results import ResultRow
from t3d.models.loading import LanguageModel, from_pretrained
from t3d.models.tokenizers import BUILT_IN
from t3d.tasks import get_task

DIRECTORY = BUILT_IN["mini_teacher"]
RECIPES = Path(__file__).parents[2] / "t3d" / "recipes"


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return from_pretrained("mini_teacher")


def test_it_is_small_and_holds_no_pickle():
    files = [path for path in DIRECTORY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 10**6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


def test_its_provenance_is_that_of_its_recipes():
    record = json.loads((DIRECTORY / "provenance.json").read_text(encoding="utf-8"))
    assert record["weights_hash"] == hash_weights(DIRECTORY)
    assert record["base"]["model"] == "new"
    for found, name in ((record, "mini_teacher"), (record["base"], "mini_words")):
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        for key in {"training", "shape"} & set(recipe):
            assert {one: found["config"][key][one] for one in recipe[key]} == recipe.pop(key)
        assert {one: found["config"][one] for one in recipe} == recipe


def test_its_tokenizer_round_trips_any_text(teacher: LanguageModel):
    for text in ("Tom has 12 apples.", "ünïcode \t  spaces \n", "<|MASK|>"):
        ids = teacher.tokenizer.encode(text, add_special_tokens=False)
        assert teacher.tokenizer.decode(ids) == text
    assert teacher.tokenizer.convert_tokens_to_ids("<|MASK|>") == teacher.mask_token_id


@pytest.mark.parametrize("name", ["mini_gsm", "mini_week"])
def test_it_solves_problems_at_full_steps_and_collapses_at_one(teacher: LanguageModel, name: str):
    task = get_task(name)
    problems = task.examples("dev", 60)

    def row(steps: int) -> ResultRow:
        config = DecodingConfig(denoising_steps=steps, max_new_tokens=96)
        return evaluate(teacher, task, problems, config, progress=False).row

    full, one = row(4), row(1)
    assert full.accuracy >= 0.8
    assert one.accuracy <= 0.4
    assert full.faithful is not None
    assert full.accuracy <= full.faithful
