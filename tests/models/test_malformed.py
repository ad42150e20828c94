"""Malformed checkpoints are refused in one line, before anything of them is loaded or run."""

from __future__ import annotations

import pickle
import re
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from t3d.models import from_pretrained
from t3d.models.checkpoint import check_checkpoint
from t3d.models.families import FAMILIES
from tests.models.malformed import (
    EMBEDDING,
    FITTING,
    HEAD,
    INDEX,
    NORM,
    SHARDS,
    WEIGHTS,
    Damage,
    code,
    config,
    cut,
    drop,
    edit,
    entry,
    every,
    header,
    header_length,
    lengthen,
    link,
    mapped,
    marker,
    pickled,
    remove,
    save_families,
    sharded,
    tensors,
    torch_saved,
    write,
)

HUGE = 10**12

FILES: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), ": no config.json; name a checkpoint directory"),
    "config cut": (cut("config.json", 9), "config.json: not valid JSON"),
    "config empty": (write("config.json", ""), "config.json: not valid JSON"),
    "config list": (write("config.json", "[1]"), "config.json: not a JSON object"),
    "config latin": (
        write("config.json", b'{"a": "\xe9"}'),
        "config.json: not valid JSON: 'utf-8'",
    ),
    "config mark": (
        write("config.json", b"\xef\xbb\xbf{}"),
        "not valid JSON: Unexpected UTF-8 BOM",
    ),
    "config nested": (write("config.json", "[" * 10**5), "config.json: not valid JSON"),
    "config enormous": (write("config.json", " " * (10 * 2**20 + 1)), "larger than 10485760 bytes"),
    "config digits": (write("config.json", "1" * 5000), "config.json: not valid JSON"),
    "config NaN": (config(initializer_range=float("nan")), "not valid JSON: NaN is no number"),
    "config infinite": (config(rope_theta=float("inf")), "not valid JSON: Infinity is no number"),
    "no tokenizer": (remove("tokenizer.json"), ": no tokenizer.json; save a fast tokenizer"),
    "adapter": (
        every(remove("config.json", WEIGHTS), write("adapter_config.json", "{}")),
        "adapter_config.json: a LoRA adapter is no checkpoint; merge it into its base model",
    ),
    "adapter and base": (write("adapter_config.json", "{}"), "merge it into its base model"),
    "gguf": (
        every(remove(WEIGHTS), write("model.gguf", b"GGUF")),
        "model.gguf: GGUF is not loaded directly; convert it first: t3d convert",
    ),
    "gguf alone": (
        every(remove("config.json", WEIGHTS), write("model.gguf", b"GGUF")),
        "convert it first: t3d convert",
    ),
    "no weights": (remove(WEIGHTS), ": no *.safetensors weights; copy them again"),
    "pickle": (
        every(remove(WEIGHTS), pickled("pytorch_model.bin")),
        "pytorch_model.bin is a pickle, convert it to safetensors first",
    ),
    "torch file": (
        every(remove(WEIGHTS), torch_saved("model.pt")),
        "model.pt is a pickle, convert it to safetensors first",
    ),
    "pickle renamed": (pickled(WEIGHTS), "model.safetensors: a pickle by another name"),
    "torch file renamed": (torch_saved(WEIGHTS), "model.safetensors: a pickle by another name"),
    "code": (
        every(
            config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
            config(model_type="evil"),
            code("evil.py"),
        ),
        "model_type 'evil' is no block-diffusion family",
    ),
}

CONFIG: dict[str, tuple[Damage, str]] = {
    "no family": (drop("model_type"), "model_type None is no block-diffusion family"),
    "family list": (config(model_type=["sdar"]), "model_type ['sdar'] is no block-diffusion"),
    "other family": (config(model_type="gpt2"), "model_type 'gpt2' is no block-diffusion family"),
    "autoregressive": (config(model_type="qwen3"), "is autoregressive; convert it first"),
    "quantized": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "has quantization_config; t3d does not load quantized weights; dequantize them first",
    ),
    "elsewhere": (config(transformers_weights="../x.safetensors"), "has transformers_weights;"),
    "labels": (config(num_labels=HUGE), "has num_labels; a language model has no labels"),
    "window": (config(use_sliding_window=True), "has use_sliding_window; t3d has no sliding"),
    "layer types": (config(layer_types=["sliding_attention"] * 2), "layer_types is not full_att"),
    "layer types short": (config(layer_types=["full_attention"]), "each of the 2 layers"),
    "no width": (drop("hidden_size"), "no hidden_size; copy the published config.json again"),
    "no epsilon": (drop("rms_norm_eps"), "no rms_norm_eps; copy the published config.json"),
    "epsilon 0": (config(rms_norm_eps=0), "rms_norm_eps must be a positive number, got 0"),
    "activation": (config(hidden_act="silo"), "hidden_act 'silo' is unknown"),
    "activation list": (config(hidden_act=["silu"]), "hidden_act ['silu'] is unknown"),
    "width huge": (config(hidden_size=HUGE), f"has shape [64, 32], not [64, {HUGE}]"),
    "width text": (config(hidden_size="32"), "hidden_size must be a number from 1 up, got '32'"),
    "width fraction": (config(hidden_size=32.5), "hidden_size must be a number from 1 up"),
    "width long": (config(hidden_size="3" * 10**6), "hidden_size must be a number from 1 up"),
    "layers huge": (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, but the"),
    "layers 0": (config(num_hidden_layers=0), "num_hidden_layers must be a number from 1 up"),
    "one layer more": (config(num_hidden_layers=3, layer_types=None), "model.layers.2."),
    "one layer less": (
        config(num_hidden_layers=1, layer_types=None),
        "'model.layers.1.input_layernorm.weight' is no tensor of it",
    ),
    "vocabulary": (config(vocab_size=-1), "vocab_size must be a number from 1 up, got -1"),
    "vocabulary other": (config(vocab_size=72), "has shape [64, 32], not [72, 32]"),
    "MLP huge": (config(intermediate_size=HUGE), f"has shape [48, 32], not [{HUGE}, 32]"),
    "heads": (config(num_attention_heads=5), "heads 5 is no multiple of num_key_value_heads 2"),
    "heads huge": (config(num_attention_heads=HUGE), "model.layers.0.self_attn.q_proj.weight has"),
    "heads and width": (
        every(config(num_attention_heads=6), drop("head_dim")),
        "hidden_size 32 is no multiple of num_attention_heads 6",
    ),
    "groups": (config(num_key_value_heads=3), "4 is no multiple of num_key_value_heads 3"),
    "groups 0": (config(num_key_value_heads=0), "num_key_value_heads must be a number from 1"),
    "head odd": (config(head_dim=7), "head_dim 7 is odd"),
    "length": (config(max_position_embeddings=-1), "max_position_embeddings must be a number"),
    "typed": (config(use_cache="yes"), "config.json: no sdar configuration: "),
    "dtype": (config(dtype="float3"), "config.json: no sdar configuration: "),
    "no theta": (
        every(drop("rope_theta"), config(rope_parameters={"rope_type": "default"})),
        "no rope_theta; add the one that the model was trained with",
    ),
    "theta 0": (config(rope_theta=0), "rope_theta must be a positive number, got 0"),
    "theta bool": (config(rope_theta=True), "rope_theta must be a positive number, got True"),
    "theta text": (config(rope_theta="1e6"), "rope_theta must be a positive number, got '1e6'"),
    "two thetas": (config(rope_theta=5.0), "rope_theta is 5.0, but 10000.0 in rope_parameters"),
    "rope list": (config(rope_parameters=[1]), "rope_parameters is no object"),
    "rope type": (
        config(rope_parameters={"rope_type": "spiral", "rope_theta": 10000.0}),
        "rope_type 'spiral' is unknown",
    ),
    "mask beyond": (config(mask_token_id=64), "mask_token_id 64 is no token of the vocabulary of"),
    "mask below": (config(mask_token_id=-1), "mask_token_id -1 is no token of the vocabulary"),
    "mask bool": (config(mask_token_id=True), "mask_token_id True is no token"),
    "mask text": (config(mask_token_id="<|MASK|>"), "mask_token_id '<|MASK|>' is no token"),
    "block 0": (config(block_size=0), "block_size must be a number from 1 up, got 0"),
    "block below": (config(block_size=-4), "block_size must be a number from 1 up, got -4"),
    "block bool": (config(block_size=True), "block_size must be a number from 1 up, got True"),
    "block text": (config(block_size="4"), "block_size must be a number from 1 up, got '4'"),
    "llama without a block": (drop("block_size"), "without block_size is autoregressive; convert"),
    "llama without a mask": (drop("mask_token_id"), "without mask_token_id is autoregressive;"),
    "qwen2 without both": (drop("block_size", "mask_token_id"), "is autoregressive; convert it"),
    "sdar_moe of no experts": (config(num_local_experts=0), "num_local_experts must be a number"),
    "sdar_moe of many experts": (
        every(config(num_experts=HUGE), drop("num_local_experts")),
        f"num_experts is {HUGE}, but the weights have only",
    ),
    "sdar_moe of few experts": (
        config(num_experts_per_tok=5),
        "num_experts_per_tok 5 is more than num_experts 4",
    ),
    "sdar_moe without routing": (drop("norm_topk_prob"), "no norm_topk_prob; copy"),
    "sdar_moe of no step": (config(decoder_sparse_step=0), "decoder_sparse_step must be a number"),
}

SHARD: dict[str, tuple[Damage, str]] = {
    "shard cut": (cut(WEIGHTS, 100), "model.safetensors: damaged or cut short"),
    "shard empty": (write(WEIGHTS, b""), "damaged or cut short (Error while deserializing header"),
    "shard long": (lengthen(WEIGHTS), "file not fully covered"),
    "shard a folder": (
        every(remove(WEIGHTS), lambda d: (d / WEIGHTS).mkdir()),
        "model.safetensors: no regular file",
    ),
    "header beyond": (header_length(10**7), "damaged or cut short (Error while deserializing hea"),
    "header huge": (header_length(2**63), "damaged or cut short (Error while deserializing"),
    "header no JSON": (write(WEIGHTS, b"\x02" + bytes(7) + b"xx"), "invalid JSON in header"),
    "header list": (write(WEIGHTS, b"\x02" + bytes(7) + b"[]"), "damaged or cut short"),
    "no tensor": (write(WEIGHTS, b"\x02" + bytes(7) + b"{}"), "but the weights have only 0"),
    "offsets beyond": (entry(NORM, data_offsets=[0, HUGE]), "damaged or cut short"),
    "offsets below": (entry(NORM, data_offsets=[-128, 0]), "integer `-128`, expected usize"),
    "offsets shared": (entry(NORM, data_offsets=[0, 128]), "damaged or cut short"),
    "shape huge": (entry(NORM, shape=[2**40, 2**40]), "damaged or cut short"),
    "shape below": (entry(NORM, shape=[-32]), "damaged or cut short"),
    "shape turned": (
        entry(EMBEDDING, shape=[32, 64]),
        "model.embed_tokens.weight has shape [32, 64], not [64, 32]; copy both again",
    ),
    "dtype unknown": (entry(NORM, dtype="F33"), "unknown variant `F33`"),
    "whole numbers": (
        entry(NORM, dtype="I32"),
        "'model.norm.weight' has numbers of type I32, not BF16, F16, F32, F64",
    ),
    "eight bits": (
        tensors(lambda s: s.update({NORM: s[NORM].to(torch.float8_e4m3fn)})),
        "'model.norm.weight' has numbers of type F8_E4M3",
    ),
    "tensor missing": (
        tensors(lambda s: s.pop(NORM)),
        "weights do not fit config.json: model.norm.weight is missing; copy the weights",
    ),
    "head missing": (
        tensors(lambda s: s.pop(HEAD)),
        "lm_head.weight is missing; set tie_word_embeddings to true if the head is the embedding",
    ),
    "tensor unknown": (
        tensors(lambda s: s.update({"a\nb": torch.zeros(1)})),
        r"model.safetensors: weights do not fit config.json: 'a\nb' is no tensor of it",
    ),
    "name long": (
        tensors(lambda s: s.update({"a" * 10**5: torch.zeros(1)})),
        "aaa... is no tensor",
    ),
    "tensor short": (
        tensors(lambda s: s.update({NORM: torch.zeros(3)})),
        "model.norm.weight has shape [3], not [32]",
    ),
    "tensor renamed": (
        header(lambda h: h.update({"norm.weight": h.pop(NORM)})),
        "model.norm.weight is missing",
    ),
    "link out": (link(WEIGHTS, "../w.safetensors"), "a link out of its directory"),
    "link broken": (
        every(link(WEIGHTS, "../w.safetensors"), lambda d: (d / "../w.safetensors").unlink()),
        "model.safetensors: a link out of its directory",
    ),
    "config linked": (link("config.json", "../c.json"), "config.json: a link out of its directory"),
    "template linked": (
        every(write("chat_template.jinja", "{{ messages }}"), link("chat_template.jinja", "../t")),
        "chat_template.jinja: a link out of its directory",
    ),
    "template linked in a folder": (
        every(
            lambda d: (d / "additional_chat_templates").mkdir(),
            write("additional_chat_templates/tools.jinja", "{{ messages }}"),
            link("additional_chat_templates/tools.jinja", "../t"),
        ),
        "additional_chat_templates/tools.jinja: a link out of its directory",
    ),
    "generation cut": (write("generation_config.json", "{"), "generation_config.json: not valid"),
    "generation list": (write("generation_config.json", "[7]"), "generation_config.json: not a J"),
    "generation NaN": (
        write("generation_config.json", '{"temperature": NaN}'),
        "generation_config.json: not valid JSON: NaN is no number; correct or delete it",
    ),
    "stray": (lambda d: shutil.copy(d / WEIGHTS, d / "b.safetensors"), "b.safetensors is neither"),
    "index lost": (sharded(remove(INDEX)), f"{SHARDS[0]} is neither model.safetensors nor named"),
    "shard lost": (sharded(remove(SHARDS[1])), f"names '{SHARDS[1]}', which is not there"),
    "shard of two cut": (sharded(cut(SHARDS[1], 4)), f"{SHARDS[1]}: damaged or cut short"),
    "shard of two out": (sharded(link(SHARDS[1], "../../x/y")), "a link out of its directory"),
    "index stray": (
        sharded(lambda d: shutil.copy(d / SHARDS[0], d / WEIGHTS)),
        "model.safetensors is in no weight_map of model.safetensors.index.json",
    ),
    "index cut": (sharded(cut(INDEX, 5)), "index.json: not valid JSON"),
    "index list": (sharded(write(INDEX, "[]")), "index.json: not a JSON object"),
    "index empty": (sharded(write(INDEX, "{}")), "index.json: no weight_map of tensors to files"),
    "index of a list": (sharded(write(INDEX, '{"weight_map": [1]}')), "no weight_map of tensors"),
    "index of numbers": (mapped(a=1), "weight_map puts 'a' into 1, which is no file of"),
    "index above": (mapped(a="../a.safetensors"), "'../a.safetensors', which is no file of this"),
    "index absolute": (mapped(a="/a.safetensors"), "'/a.safetensors', which is no file of this"),
    "index below": (mapped(a="b/a.safetensors"), "'b/a.safetensors', which is no file of this"),
    "index of a pickle": (
        every(pickled("w.bin"), mapped(a="w.bin")),
        "weight_map names 'w.bin', which is not there",
    ),
    "index other": (mapped(model__norm__weight=SHARDS[0]), f"{SHARDS[1]} holds it; copy both"),
    "index short": (
        sharded(edit(INDEX, lambda i: i["weight_map"].pop(NORM))),
        "weight_map puts 'model.norm.weight' into None, but",
    ),
    "index long": (mapped(extra=SHARDS[0]), "puts 'extra' into model-00001-of-00002.safetensors"),
    "tensor twice": (
        sharded(tensors(lambda s: s.update({NORM: torch.zeros(32)}), SHARDS[0])),
        f"'model.norm.weight' is in {SHARDS[0]} as well; copy both again",
    ),
}

CORPUS = FILES | CONFIG | SHARD

TOKENIZER: dict[str, tuple[Damage, str]] = {
    "cut": (cut("tokenizer.json", 100), "cannot load the tokenizer"),
    "empty": (write("tokenizer.json", "{}"), "cannot load the tokenizer"),
    "settings": (write("tokenizer_config.json", "{"), "cannot load the tokenizer"),
    "code": (
        every(
            edit("tokenizer_config.json", lambda d: d.pop("tokenizer_class")),
            edit(
                "tokenizer_config.json",
                lambda d: d.update(auto_map={"AutoTokenizer": [None, "evil.T"]}),
            ),
            code("evil.py"),
            cut("tokenizer.json", 100),
        ),
        "cannot load the tokenizer",
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_families(tmp_path_factory.mktemp("models"))


def assert_plain(error: ValueError, directory: Path) -> None:
    """One line of readable length that names the file or its directory first."""
    message = str(error)
    assert message.startswith(str(directory)), message
    assert message.isprintable(), message
    assert len(message) < len(str(directory)) + 500, message


@pytest.mark.parametrize("name", CORPUS)
def test_a_malformed_checkpoint_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    damage, part = CORPUS[name]
    family = name.split()[0] if name.split()[0] in FAMILIES else "sdar"
    copy = shutil.copytree(saved / family, tmp_path / "copy")
    assert check_checkpoint(copy)["model_type"] == family
    damage(copy)
    tracemalloc.start()
    with pytest.raises(ValueError, match=re.escape(part)) as caught:
        check_checkpoint(copy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_plain(caught.value, copy)
    # The largest files of the corpus have a megabyte, and nothing asks for more.
    assert peak < 16 * 2**20
    assert not marker(copy).exists()


@pytest.mark.parametrize("name", TOKENIZER)
def test_a_malformed_tokenizer_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    damage, part = TOKENIZER[name]
    copy = shutil.copytree(saved / FITTING, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ValueError, match=re.escape(part)) as caught:
        from_pretrained(copy)
    assert_plain(caught.value, copy)
    assert not marker(copy).exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens, the model only 64"):
        from_pretrained(saved / "sdar")


def test_the_payloads_would_run(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    pickled("a.bin")(copy)
    pickle.loads((copy / "a.bin").read_bytes())
    assert marker(copy).exists()
    marker(copy).unlink()
    code("a.py")(copy)
    exec((copy / "a.py").read_text())
    assert marker(copy).exists()


def test_files_that_are_not_read_do_no_harm(saved: Path, tmp_path: Path) -> None:
    """Pickles and code beside good weights, as published repositories have them."""
    copy = shutil.copytree(saved / "sdar", tmp_path / "copy")
    every(
        config(auto_map={"AutoConfig": "evil.C"}),
        code("evil.py"),
        pickled("pytorch_model.bin"),
        torch_saved("optimizer.pt"),
        write("model.gguf", b"GGUF"),
    )(copy)
    assert check_checkpoint(copy)["auto_map"] == {"AutoConfig": "evil.C"}
    assert not marker(copy).exists()
