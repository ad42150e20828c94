"""Presets, shapes and devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from t3d.bench.config import Shape
from t3d.bench.subject import (
    PRESETS,
    choose_device,
    device_name,
    load_subject,
    ordinary_ids,
    random_model,
)
from t3d.experiment.plan import described
from t3d.models import from_pretrained
from tests.bench.conftest import SHAPE

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "billions"), [("sdar-100m", 0.1), ("sdar-1.7b", 2.03), ("sdar-4b", 4.41)]
)
def test_presets_have_the_size_in_their_name(name: str, billions: float) -> None:
    # Untied heads come on top of Qwen3's 1.7 and 4.0 billion.
    model = described(PRESETS[name])
    assert model is not None
    found = model.num_parameters()
    assert found is not None
    assert found / 1e9 == pytest.approx(billions, rel=0.03)


def test_a_random_model_is_always_the_same() -> None:
    before = torch.random.get_rng_state()
    one, two = (random_model(SHAPE, CPU, "bfloat16") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    weights = [lm.model.state_dict() for lm in (one, two)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {w.dtype for w in weights[0].values()} == {torch.bfloat16}
    # A cast would round them.
    rotary = [m.inv_freq for m in one.model.modules() if hasattr(m, "inv_freq")]
    assert [frequencies.dtype for frequencies in rotary] == [torch.float32]
    assert not one.model.training
    assert one.name == "random sdar, hidden 32, 2 layers, vocabulary 300"


def test_any_family_will_do() -> None:
    lm = random_model({**SHAPE, "model_type": "qwen2"}, CPU, "float32")
    assert lm.model.config.model_type == "qwen2"


def test_a_checkpoint_is_loaded(lm: Any, tmp_path: Path) -> None:
    lm.save(tmp_path)
    loaded = load_subject(str(tmp_path), None, CPU, "bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.weights_hash == from_pretrained(tmp_path).weights_hash


def test_ordinary_ids_are_all_but_the_mask(lm: Any) -> None:
    assert set(range(300)) - set(ordinary_ids(lm)) == {lm.mask_token_id}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("sdar-9b", "shape 'sdar-9b' is none of sdar-100m"),
        ({"hidden_size": 8}, "shape: lacks vocab_size, intermediate_size, num_hidden_layers"),
        ({**SHAPE, "vocab_size": 50}, "shape: vocab_size must be at least 2"),
        ({**SHAPE, "model_type": "gpt2"}, "'gpt2' is no block-diffusion family"),
    ],
)
def test_shapes_that_make_no_model(shape: Shape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model(shape, CPU, "float32")


def test_a_checkpoint_and_a_shape_are_too_much() -> None:
    with pytest.raises(ValueError, match="give --model for a checkpoint or --shape"):
        load_subject("x", "sdar-100m", CPU, "float32")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ValueError, match="device=cuda: torch sees no GPU here"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == CPU
    assert device_name(CPU) == "cpu"
