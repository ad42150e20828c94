"""A LoRA adapter drafts for the model that it was trained beside: one base, and the same output."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from t3d.core.rng import derive_key
from t3d.decoding.build import load_draft_model, make_decoder
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Request
from t3d.models import LanguageModel, from_pretrained
from t3d.models.adapter import with_adapter
from t3d.tasks import get_task
from t3d.training.config import LoraSettings
from t3d.training.lora import WEIGHTS_FILE, Adapter

LEFT_TO_RIGHT = DecodingConfig(
    block_size=8, denoising_steps=8, max_new_tokens=40, remasking="sequential", draft_states=8
)


@pytest.fixture
def lm() -> LanguageModel:
    return from_pretrained("mini_teacher", dtype=torch.float64)


@pytest.fixture
def student(tmp_path: Path) -> LanguageModel:
    """A student as training leaves it: merged, with the adapter beside it."""
    merged = from_pretrained("mini_teacher", dtype=torch.float64)
    adapter = Adapter(merged, LoraSettings(rank=2, alpha=4), seed=0)
    for name, weight in adapter.weights.items():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    (tmp_path / "adapter").mkdir()
    adapter.save(tmp_path / "adapter")
    adapter.merge()
    merged.save(tmp_path)
    return merged


def test_an_adapter_drafts_as_its_merged_student(
    lm: LanguageModel, student: LanguageModel, tmp_path: Path
) -> None:
    examples = get_task("mini_gsm").examples("test", 6)
    requests = [
        Request(ids, derive_key(0, i)) for i, ids in enumerate(lm.encode_examples(examples))
    ]
    plain, *drafted = (
        make_decoder(lm, replace(LEFT_TO_RIGHT, **changes), 4).decode(requests)
        for changes in (
            {"draft_states": 1},
            {"draft_model": str(tmp_path)},
            {"draft_model": str(tmp_path / "adapter")},
        )
    )
    for own, *others in zip(plain, *drafted, strict=True):
        assert [other.response_ids for other in others] == [own.response_ids] * 2
        assert [other.step_map for other in others] == [own.step_map] * 2
        assert others[0].passes == others[1].passes
        assert others[0].passes.denoising < own.passes.denoising


def test_only_the_adapter_takes_memory(lm: LanguageModel, student: LanguageModel, tmp_path: Path):
    own = {weight.data_ptr(): weight for weight in lm.model.parameters()}
    config = replace(LEFT_TO_RIGHT, draft_model=str(tmp_path / "adapter"))
    drafter = load_draft_model(lm, config)
    assert drafter is not None
    new = [w for w in drafter.model.parameters() if w.data_ptr() not in own]
    weights = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    assert sum(w.nbytes for w in new) == sum(w.nbytes for w in weights.values())
    # The base is what it was, and can still be trained.
    assert all(weight.requires_grad for weight in lm.model.parameters())
    assert not any("lora" in name for name, _ in lm.model.named_parameters())
    assert not drafter.model.training
    # Recipes are checked without the base's weights.
    assert load_draft_model(from_pretrained("mini_teacher", device="meta"), config) is not None


def made_by_peft(directory: Path, **settings: Any) -> nn.Module:
    """Save an adapter as peft does; the model with it."""
    base: Any = from_pretrained("mini_teacher").model
    settings = {"r": 2, "target_modules": ["q_proj", "down_proj"]} | settings
    model: Any = get_peft_model(base, LoraConfig(**settings))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            generator = torch.Generator().manual_seed(len(name))
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(str(directory))
    return model.eval().base_model.model


# peft asks transformers for a name that is deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "init_lora_weights": "gaussian", "bias": "all"},
        {"target_modules": r".*layers\.0\..*_proj", "exclude_modules": ["v_proj"]},
        {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"q_proj": 3}, "layers_to_transform": [1]},
        {"use_dora": True},
        {"modules_to_save": ["norm"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
    ],
)
def test_an_adapter_of_peft_drafts_or_is_refused_and_the_base_stays_as_it_is(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    lm = from_pretrained("mini_teacher")
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    made = made_by_peft(tmp_path, **settings)
    is_plain = not {"use_dora", "modules_to_save"} & settings.keys()
    if is_plain and settings.get("init_lora_weights") in (None, "gaussian"):
        ids = torch.arange(20, 36)[None]
        assert_close(with_adapter(lm, tmp_path).model(ids).logits, made(ids).logits)
    else:
        with pytest.raises(ValueError, match=r"more than plain LoRA|changes the base"):
            with_adapter(lm, tmp_path)
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", rf"{WEIGHTS_FILE}: cannot be read"),
        ("other", rf"{WEIGHTS_FILE}: an adapter of another model, of another rank or other layers"),
        ("numbers", rf"{WEIGHTS_FILE}: .* holds NaN, infinity or numbers near it"),
        ("layers", r"adapter_config.json: no LoRA adapter of mini_teacher: .*absent"),
        # peft 0.18 warns of a tied head before we refuse it.
        ("head", r"adapter_config.json: no LoRA adapter of mini_teacher: .*(the head|lm_head)"),
        ("json", r"adapter_config.json: not valid JSON"),
        ("peft", r"is a LoRA adapter, which needs peft; .*pip install 't3d\[lora\]'"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused(
    lm: LanguageModel,
    student: LanguageModel,
    tmp_path: Path,
    damage: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "adapter"
    path, config = folder / WEIGHTS_FILE, folder / "adapter_config.json"
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        save_file(dict(list(load_file(path).items())[1:]), path)
    elif damage == "numbers":
        save_file({name: weight / 0 for name, weight in load_file(path).items()}, path)
    elif damage == "layers":
        config.write_text(config.read_text().replace("_proj", "_absent"))
    elif damage == "head":
        config.write_text(config.read_text().replace('"q_proj"', '"lm_head"'))
    elif damage == "json":
        config.write_text("{")
    else:
        monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=message):
        make_decoder(lm, replace(LEFT_TO_RIGHT, draft_model=str(folder)), 1)
