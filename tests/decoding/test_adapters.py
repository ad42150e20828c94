"""A LoRA adapter drafts for the model that it was trained beside: one base, and the same output."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from t3d.core.rng import derive_key
from t3d.decoding.build import load_draft_model, make_decoder
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Request
from t3d.models import LanguageModel, from_pretrained
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", rf"{WEIGHTS_FILE}: cannot be read"),
        ("other", rf"{WEIGHTS_FILE}: an adapter of another model, of another rank or other layers"),
        ("layers", r"adapter_config.json: no LoRA adapter of mini_teacher: .*absent"),
        ("json", r"adapter_config.json: no LoRA adapter of mini_teacher"),
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
    elif damage == "layers":
        config.write_text(config.read_text().replace("_proj", "_absent"))
    elif damage == "json":
        config.write_text("{")
    else:
        monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=message):
        make_decoder(lm, replace(LEFT_TO_RIGHT, draft_model=str(folder)), 1)
