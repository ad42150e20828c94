"""What SGLang and LMDeploy would read wrongly is found in the fields alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from t3d.core.files import write_json
from t3d.interop.checkpoints.engines import engine_findings
from t3d.testing import tiny


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    document = {**json.loads(path.read_text()), **values}
    write_json(path, {key: value for key, value in document.items() if value is not None})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The JSON of a model as published."""
    config = tiny(tie_word_embeddings=False).config.to_diff_dict()
    published = {"architectures": ["SDARForCausalLM"], "torch_dtype": "bfloat16"}
    published |= {"dtype": None, "mask_token_id": 151669}
    write_json(tmp_path / "config.json", config | published)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [1, 2]})
    return tmp_path


def of_engines(folder: Path, stops: tuple[int, ...] = ()) -> list[tuple[str, str, bool]]:
    return [(f.consumer, f.problem, f.fatal) for f in engine_findings(folder, stops)]


def test_engines_find_nothing_wrong_with_the_published_layout(folder: Path) -> None:
    assert of_engines(folder) == []


DAMAGES: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "mask": ({"mask_token_id": 7}, "mask token 151669 always, the model's is 7", set()),
    "class": ({"architectures": ["Qwen3ForCausalLM"]}, "decodes no Qwen3ForCausalLM", set()),
    "type": ({"model_type": "qwen3"}, "model_type 'qwen3' does not go with SDARForCausal", set()),
    "theta": ({"rope_theta": None}, "rope_theta, which config.json lacks, and takes 10000", set()),
    "heads": ({"num_key_value_heads": None}, "reads num_key_value_heads", set()),
    "head": ({"head_dim": None}, "reads head_dim, which config.json lacks", set()),
    "dtype": ({"torch_dtype": None}, "reads torch_dtype, which config.json lacks", set()),
    "act": ({"hidden_act": "gelu"}, "computes silu, the model gelu", set()),
    "window": ({"use_sliding_window": True}, "the model to a window", set()),
    "tied": ({"tie_word_embeddings": True}, "asks for a weight of the head", {"lmdeploy"}),
    "dense": ({"mlp_only_layers": [0]}, "takes every layer for one of experts", {"lmdeploy"}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_engines_read_wrongly_is_found(folder: Path, name: str) -> None:
    values, part, unaffected = DAMAGES[name]
    edit(folder / "config.json", **values)
    found = of_engines(folder)
    assert {consumer for consumer, _, _ in found} == {"sglang", "lmdeploy"} - unaffected
    assert all(part in problem and fatal for _, problem, fatal in found)


def test_stop_tokens_and_block_sizes_of_the_engines(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=5)
    assert of_engines(folder, (5,)) == []
    assert [problem for _, problem, _ in of_engines(folder, (5, 9))] == [
        "does not stop at token 9, which generation_config.json does not list"
    ] * 2
    (folder / "generation_config.json").unlink()
    assert len(of_engines(folder)) == 2
    edit(folder / "config.json", block_size=16)
    shutil.copy(folder / "config.json", folder / "generation_config.json")
    edit(folder / "generation_config.json", eos_token_id=5)
    found = engine_findings(folder, (5,))
    assert [f.fatal for f in found] == [False, False]
    assert "--dllm-block-length 16" in found[1].remedy
