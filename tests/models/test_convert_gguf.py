"""Models in GGUF files convert as in folders."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from t3d.core.files import hash_file
from t3d.models import from_pretrained
from t3d.models.convert import convert
from tests.models.llama_gguf import write_gguf
from tests.models.sources import TEXT, causal_logits, random_model


@pytest.fixture(scope="module")
def gguf_source(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    model = random_model(LlamaConfig, len(tokenizer), True)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf", model, tokenizer), model


@pytest.mark.parametrize("named_by", ["file", "option"])
def test_a_gguf_file_converts_as_its_model_does(
    gguf_source: tuple[Path, Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    named_by: str,
) -> None:
    path, model = gguf_source
    if named_by == "option":
        # Another file beside it, and a config.json that is not its own.
        folder = tmp_path / "folder"
        folder.mkdir()
        path = Path(shutil.copy(path, folder / "b.gguf"))
        (folder / "c.gguf").write_bytes(b"GGUF")
        output = convert(folder, tmp_path / "out", gguf_file="b.gguf")
    else:
        output = convert(path, tmp_path / "out")
    lm = from_pretrained(output)
    ids = torch.tensor([lm.encode_prompt(TEXT)])
    with torch.no_grad():
        wanted = model(ids).logits
    torch.testing.assert_close(causal_logits(lm, ids)[..., : len(tokenizer)], wanted)
    vocabulary = tokenizer.get_vocab()
    assert lm.stop_token_ids == (vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"])
    assert lm.pad_token_id == vocabulary["<|endoftext|>"]
    assert lm.mask_token_id == len(tokenizer)
    document = json.loads((output / "config.json").read_text())
    assert document["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in document
    record = json.loads((output / "provenance.json").read_text())
    assert record["source"] == {
        "gguf_file": path.name,
        "revision": None,
        "hash": hash_file(path),
        "license": "apache-2.0",
    }


def test_the_tokenizer_of_a_gguf_file_splits_digits_as_its_model_was_trained(
    gguf_source: tuple[Path, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    wanted = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    undivided = wanted.encode(TEXT).ids
    split: Any = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    wanted.pre_tokenizer = split
    # A folder that holds nothing else names the file, too.
    output = convert(gguf_source[0].parent, tmp_path / "out")
    ids = from_pretrained(output).tokenizer(TEXT)["input_ids"]
    assert ids == wanted.encode(TEXT).ids != undivided


def test_the_extra_is_named_where_its_package_is_missing(
    gguf_source: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=re.escape("a.gguf: needs the package gguf; pip install")):
        convert(gguf_source[0], tmp_path / "out")
