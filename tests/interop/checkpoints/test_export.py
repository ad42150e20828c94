"""Exported folders: loaded by transformers alone they are the same model, and damage is found."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t3d.cli.exporting import export_command as command
from t3d.core.files import write_json
from t3d.evaluation.results import save_results
from t3d.interop.checkpoints.config import ExportConfig
from t3d.interop.checkpoints.engines import Finding
from t3d.interop.checkpoints.layout import export
from t3d.interop.checkpoints.verify import check, claims, expected, probe_inputs, run_probe
from t3d.models import LanguageModel, from_pretrained, wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny
from tests.row import make_row

MODELS: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False, "rope_theta": 5e5},
    "tied": {"tie_word_embeddings": True, "block_size": 3},
    "moe": {"family": "sdar_moe"},
    "llama": {"family": "llama", "tie_word_embeddings": True},
    "qwen2": {"family": "qwen2"},
}
EXPERTS = "model.layers.0.mlp.experts.0.gate_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as training leaves them."""
    examples = get_task("mini_gsm").examples("train", 100)
    tokenizer = train_tokenizer([e.question for e in examples], vocab_size=300)
    folder = tmp_path_factory.mktemp("saved")
    for name, settings in MODELS.items():
        model = tiny(
            **{"family": "sdar", **settings},
            vocab_size=len(tokenizer),
            dtype=torch.float32,
            initializer_range=0.2,
        )
        wrap(model, tokenizer, "memory").save(folder / name)
    return {name: folder / name for name in MODELS}


@pytest.fixture(scope="module")
def exported(saved: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for name, path in saved.items():
        export(
            path, folder / name, ExportConfig(max_shard_size="20KB" if name == "untied" else "5GB")
        )
    return {name: folder / name for name in MODELS}


@pytest.fixture
def copy(exported: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(exported["untied"], tmp_path / "copy")


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    document = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


def inputs(lm: LanguageModel) -> tuple[torch.Tensor, int]:
    size = lm.model.config.block_size
    assert size is not None
    return probe_inputs(lm.model.config.vocab_size, size), size


@pytest.fixture(scope="module")
def probed(exported: dict[str, Path]) -> dict[str, dict[str, torch.Tensor]]:
    """What transformers alone makes of every family, in one clean process."""
    jobs = [(path, inputs(from_pretrained(path))[0]) for path in exported.values()]
    return dict(zip(exported, run_probe(sys.executable, jobs), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_alone_gives_the_source_s_logits(
    saved: dict[str, Path], probed: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    lm, found = from_pretrained(saved[name]), probed[name]
    wanted = expected(lm, *inputs(lm))
    for what in ("logits", "cached"):
        torch.testing.assert_close(found[what], wanted[what])
    head = lm.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        logits = head(found["hidden"])
    torch.testing.assert_close(logits, wanted["logits"])
    # transformers 5 takes Qwen2's own tokenizer for a Qwen2, whatever the folder holds.
    assert torch.equal(found["prompt"], wanted["prompt"]) == (name != "qwen2")


@pytest.mark.parametrize("name", MODELS)
def test_t3d_loads_what_it_exported(
    saved: dict[str, Path], exported: dict[str, Path], name: str
) -> None:
    before, after = from_pretrained(saved[name]), from_pretrained(exported[name])
    state, wanted = after.model.state_dict(), before.model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    ids, _ = inputs(before)
    with torch.no_grad():
        assert torch.equal(after.model(ids).logits, before.model(ids).logits)
    text = "On Monday Tom buys 3 more. <|MASK>"
    assert after.encode_prompts([text]) == before.encode_prompts([text])
    for key in ("mask_token_id", "pad_token_id", "stop_token_ids"):
        assert vars(after)[key] == vars(before)[key]


def test_the_layout_is_the_published_one(exported: dict[str, Path]) -> None:
    folder = exported["untied"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["SDARForCausalLM"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_sdar.SDARConfig",
        "AutoModel": "modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    }
    assert (config["rope_theta"], config["rope_scaling"]) == (5e5, None)
    assert config["torch_dtype"] == "float32"
    assert config["tie_word_embeddings"] is False
    assert {"dtype", "rope_parameters", "layer_types"}.isdisjoint(config)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert {"lm_head.weight", "model.layers.1.self_attn.q_norm.weight"} <= index.keys()
    assert EXPERTS in load_file(exported["moe"] / "model.safetensors")
    assert "lm_head.weight" not in load_file(exported["tied"] / "model.safetensors")
    llama = json.loads((exported["llama"] / "config.json").read_text())
    assert (llama["model_type"], llama["architectures"]) == ("llama", ["LlamaForCausalLM"])
    code = (exported["llama"] / "modeling_llama.py").read_text()
    assert not re.search("SDAR[A-Z]|_sdar|Qwen|import flash", code)


def test_the_modeling_file_is_small(exported: dict[str, Path]) -> None:
    for folder in exported.values():
        for path in folder.glob("*.py"):
            assert len(path.read_text().splitlines()) < 150
            assert "t3d" not in re.findall(r"(?:import|from) (\w+)", path.read_text())


def test_dtype_and_untied_head(saved: dict[str, Path], tmp_path: Path) -> None:
    export(saved["tied"], tmp_path / "half", ExportConfig(dtype="bfloat16", untie=True))
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (config["torch_dtype"], config["tie_word_embeddings"]) == ("bfloat16", False)
    export(tmp_path / "half", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert again["lm_head.weight"].dtype == torch.bfloat16


def test_calibrated_settings_and_provenance_come_along(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(saved["untied"], tmp_path / "source")
    edit(source / "generation_config.json", denoising_steps=2, temperature=0.5)
    write_json(source / "provenance.json", {"seed": 3})
    export(source, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (document["denoising_steps"], document["temperature"]) == (2, 0.5)
    assert document["eos_token_id"] == list(from_pretrained(source).stop_token_ids)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text()) == {"seed": 3}


def test_nothing_is_left_of_a_failed_export(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such results file"):
        export(saved["untied"], tmp_path / "out", ExportConfig(results=tmp_path / "absent.json"))
    with pytest.raises(ValueError, match="max_shard_size must be a size such as 5GB, got 'big'"):
        export(saved["untied"], tmp_path / "out", ExportConfig(max_shard_size="big"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ValueError, match="out: exists already and holds mine"):
        export(saved["untied"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_block_size_must_come_from_somewhere(saved: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(saved["untied"], tmp_path / "source")
    edit(source / "config.json", block_size=None)
    with pytest.raises(ValueError, match="config.json has no block_size; give --block_size"):
        export(source, tmp_path / "out")
    export(source, tmp_path / "out", ExportConfig(block_size=8))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["block_size"] == 8


def find(folder: Path, consumer: str) -> str:
    """Problems of one consumer; checks that others than the engines have none."""
    findings = [f for f in check(folder) if f.consumer in ("transformers", "t3d")]
    assert {f.consumer for f in findings} <= {consumer}
    return "; ".join(f.problem for f in findings)


def changed(key: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(found: dict[str, torch.Tensor]) -> None:
        found[key].view(-1)[-1] = value

    return change


PROBED: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], None], str]] = {
    "sound": ("moe", lambda found: None, ""),
    "not a number": ("moe", changed("logits", torch.nan), "logits of whole sequences differ"),
    "cache": ("tied", changed("cached", 9e9), "logits of a block after cached ones differ"),
    "base": ("untied", changed("hidden", 9e9), "hidden states of AutoModel differ"),
    "tokenizer": ("qwen2", lambda found: None, "the chat template gives other tokens than in t3d"),
}


@pytest.mark.parametrize("case", PROBED)
def test_what_transformers_does_otherwise_is_found(
    exported: dict[str, Path],
    probed: dict[str, dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    name, change, part = PROBED[case]
    found = {key: value.clone() for key, value in probed[name].items()}
    change(found)
    monkeypatch.setattr("t3d.interop.checkpoints.verify.run_probe", lambda python, jobs: [found])
    problems = find(exported[name], "transformers")
    assert part in problems
    assert bool(problems) == bool(part)


def test_a_mask_that_is_not_the_model_s_is_found(copy: Path) -> None:
    """The folder's code gives other numbers than t3d."""
    path = copy / "modeling_sdar.py"
    path.write_text(path.read_text().replace(">= block)", "> block - 2)"))
    assert "logits of whole sequences differ from t3d's by" in find(copy, "transformers")


LIGHT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "code": (
        lambda d: (d / "modeling_sdar.py").unlink(),
        "transformers",
        "modeling_sdar.py is missing, which auto_map names",
    ),
    "map": (
        lambda d: edit(d / "config.json", auto_map={}),
        "transformers",
        "AutoConfig has no class in auto_map",
    ),
    "tokenizer class": (
        lambda d: edit(d / "tokenizer_config.json", tokenizer_class="TokenizersBackend"),
        "transformers",
        "TokenizersBackend is unknown to transformers 4",
    ),
    "tokenizer list": (
        lambda d: edit(d / "tokenizer_config.json", extra_special_tokens=["<|im_end|>"]),
        "transformers",
        "extra_special_tokens as a list",
    ),
    "shard": (
        lambda d: sorted(d.glob("*.safetensors"))[0].unlink(),
        "t3d",
        "model-00001-of",
    ),
    "block": (
        lambda d: edit(d / "config.json", block_size=None),
        "t3d",
        "config.json has no block_size",
    ),
}


@pytest.mark.parametrize("name", LIGHT)
def test_a_damaged_folder_is_named(copy: Path, name: str) -> None:
    damage, consumer, part = LIGHT[name]
    damage(copy)
    assert part in find(copy, consumer)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.json: cannot be read: No such file"):
        check(tmp_path)


def test_the_card_says_who_it_is_for(copy: Path) -> None:
    assert claims(copy) == {"transformers", "t3d"}
    card = copy / "README.md"
    card.write_text(card.read_text().replace("- t3d\n", "- t3d\n- sglang\n"))
    assert claims(copy) == {"transformers", "t3d", "sglang"}
    card.write_text("no metadata")
    assert claims(copy) == {"transformers", "t3d"}
    card.write_text("---\n[\n---\n")
    with pytest.raises(ValueError, match="README.md: its metadata is no YAML"):
        claims(copy)
    card.unlink()
    assert claims(copy) == {"transformers", "t3d"}


def test_the_command_fails_for_what_the_folder_claims(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("sglang", "falls over", "leave it"), Finding("t3d", "slow", "-", False)]
    monkeypatch.setattr("t3d.interop.checkpoints.verify.check", lambda directory: findings)
    command(check=copy)
    assert "falls over" in capsys.readouterr().out
    monkeypatch.setattr(
        "t3d.interop.checkpoints.verify.claims", lambda directory: {"sglang", "t3d"}
    )
    with pytest.raises(ValueError, match="copy: does not work in sglang"):
        command(check=copy)
    for model, folder in ((None, None), ("x", None), ("x", copy)):
        with pytest.raises(ValueError, match="--check"):
            command(model=model, check=folder)


def test_the_card_tells_what_is_known_and_no_more(saved: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(saved["untied"], tmp_path / "source")
    export(source, tmp_path / "bare")
    bare = (tmp_path / "bare" / "README.md").read_text()
    for absent in ("license", "base_model", "## How it was made", "## Results", "None", "null"):
        assert absent not in bare
    record = {
        "config": {"method": {"method": "t3d"}, "training": {}},
        "seed": 5,
        "model": "JetLM/SDAR-1.7B-Chat",
        "optimizer_steps": 70,
        "tokens_seen": 12345,
        "packages": {"t3d": "0.1.0"},
    }
    write_json(source / "provenance.json", record)
    row = make_row(
        64, 128, task="gsm8k", seed=5, model=str(source), denoising_steps=2, optimizer_steps=70,
        tokens_seen=12345,
    )  # fmt: skip
    other = replace(row, method="theirs", model="elsewhere")
    save_results(tmp_path / "results.json", [other], {})
    with pytest.raises(ValueError, match="results.json: holds no row of .*source; evaluate it"):
        export(source, tmp_path / "full", ExportConfig(results=tmp_path / "results.json"))
    save_results(tmp_path / "results.json", [row, other], {})
    config = ExportConfig(results=tmp_path / "results.json", license="apache-2.0")
    export(source, tmp_path / "full", config)
    full = (tmp_path / "full" / "README.md").read_text()
    for part in (
        "license: apache-2.0",
        "base_model: JetLM/SDAR-1.7B-Chat",
        "pipeline_tag: text-generation",
        "library_name: transformers",
        "- method: t3d\n",
        "- papers: [T3D, arXiv:2602.12262](https://arxiv.org/abs/2602.12262)\n",
        "- optimizer steps: 70\n",
        "| 50.0% | 41.5% to 58.5% | 128 | 2.00 |",
    ):
        assert part in full, part
    assert "theirs" not in full
