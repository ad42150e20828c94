"""The decoding setting that a checkpoint names as its own, as t3d and transformers read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from t3d.decoding.config import DecodingConfig
from t3d.decoding.defaults import read_generation_config, write_generation_config
from t3d.models import from_pretrained, wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny


def test_a_calibrated_checkpoint_loads_and_names_its_settings(tmp_path: Path) -> None:
    texts = [example.question for example in get_task("mini_gsm").examples("train", 50)]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    lm = wrap(tiny(vocab_size=len(tokenizer), dtype=torch.float32), tokenizer, "memory")
    lm.save(tmp_path)
    assert read_generation_config(tmp_path) is None
    path = tmp_path / "generation_config.json"
    before = json.loads(path.read_text())
    expected = DecodingConfig(4, 3, "low_confidence_dynamic", 0.85, 0.1, 0, 0.9, 96)
    write_generation_config(tmp_path, expected)
    assert read_generation_config(tmp_path) == expected
    after = json.loads(path.read_text())
    assert before.items() <= after.items()
    assert after["do_sample"] is True
    loaded = GenerationConfig.from_pretrained(tmp_path)
    assert (loaded.temperature, loaded.top_p, loaded.max_new_tokens) == (0.1, 0.9, 96)
    # Saved again by transformers, which leaves out its defaults.
    loaded.save_pretrained(tmp_path)
    assert read_generation_config(tmp_path) == expected
    again = from_pretrained(tmp_path)
    assert again.stop_token_ids == lm.stop_token_ids
    state = lm.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.model.state_dict().items())
    # The next calibration replaces the settings and nothing else; greedy decoding loads, too.
    write_generation_config(tmp_path, DecodingConfig(denoising_steps=2, temperature=0.0))
    second = read_generation_config(tmp_path)
    assert second == DecodingConfig(denoising_steps=2, temperature=0.0)
    assert json.loads(path.read_text()).keys() >= before.keys()
    assert GenerationConfig.from_pretrained(tmp_path).do_sample is False
    assert from_pretrained(tmp_path).stop_token_ids == lm.stop_token_ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"block_size": "4"}', "block_size must be a whole number, got '4'; correct it or run"),
        ('{"block_size": true}', "block_size must be a whole number"),
        ('{"block_size": null}', "block_size must be a whole number"),
        ('{"block_size": 4, "temperature": "hot"}', "temperature must be a number"),
        ('{"block_size": 4, "temperature": NaN}', "NaN is no number"),
        ('{"window": 1.5}', "window must be a whole number, got 1.5"),
        ('{"remasking": ["random"]}', "remasking must be one of"),
        ('{"remasking": "best"}', "remasking must be one of .*; correct it or run"),
        ('{"denoising_steps": 9}', "denoising_steps must be at most block_size=4"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_generation_config(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_other_tools_keys_alone_name_no_settings(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) is None
    path = tmp_path / "generation_config.json"
    path.write_text('{"temperature": 0.6, "top_k": 20, "do_sample": true, "eos_token_id": 3}')
    assert read_generation_config(tmp_path) is None
    # They count once calibrated, as they were while calibrating.
    write_generation_config(tmp_path, DecodingConfig(denoising_steps=2))
    assert read_generation_config(tmp_path) == DecodingConfig(denoising_steps=2)
    with pytest.raises(ValueError, match="no such checkpoint directory"):
        write_generation_config(tmp_path / "none", DecodingConfig(denoising_steps=2))
