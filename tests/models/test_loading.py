"""Checkpoints on disk: what is saved loads unchanged, and what is wrong is named."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t3d.core.provenance import hash_weights
from t3d.models import LanguageModel, from_pretrained, wrap
from t3d.tasks import Example, get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny
from tests.models.malformed import config, edit

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    examples = get_task("mini_gsm").examples("train", 200)
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    return wrap(tiny(vocab_size=len(tokenizer), dtype=torch.float32), tokenizer, "memory")


@pytest.fixture(scope="module")
def saved(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "saved"
    lm.save(path)
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def test_both_ends_of_a_turn_stop(lm: LanguageModel, saved: Path) -> None:
    vocabulary = lm.tokenizer.get_vocab()
    both = (vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"])
    assert lm.stop_token_ids == both
    assert from_pretrained(saved).stop_token_ids == both
    document = json.loads((saved / "generation_config.json").read_text())
    assert tuple(document["eos_token_id"]) == both


def test_a_tokenizer_may_come_as_vocabulary_and_merges(copy: Path, lm: LanguageModel) -> None:
    document = json.loads((copy / "tokenizer.json").read_text())
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"]
    ]
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    (copy / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    (copy / "added_tokens.json").write_text(json.dumps(added))
    # As published: code beside it that must not run.
    (copy / "tokenization_qwen2.py").write_text("raise AssertionError('was run')")
    edit(
        "tokenizer_config.json",
        lambda d: d.update(
            tokenizer_class="Qwen2Tokenizer",
            auto_map={"AutoTokenizer": ["tokenization_qwen2.Qwen2Tokenizer", None]},
        ),
    )(copy)
    loaded = from_pretrained(copy)
    assert loaded.mask_token_id == lm.mask_token_id
    assert loaded.stop_token_ids == lm.stop_token_ids
    text = "Tom has 5 apples."
    assert loaded.decode(loaded.tokenizer(text)["input_ids"]) == text


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(directory: Path) -> None:
        file = directory / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def stop(value: object) -> Damage:
    return edit("generation_config.json", lambda document: document.update(eos_token_id=value))


def write(file: str, text: str) -> Damage:
    return lambda directory: (directory / file).write_text(text)


def remove(file: str) -> Damage:
    return lambda directory: (directory / file).unlink()


def cut(file: str, num: int) -> Damage:
    """All but the last `num` bytes."""
    return lambda directory: (directory / file).write_bytes((directory / file).read_bytes()[:-num])


def only_a_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def a_shard_short(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:5]}, directory / first, metadata={"format": "pt"})
    index = {name: first if i < 5 else second for i, name in enumerate(names)}
    document = {"metadata": {}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(document))


def fewer_embeddings(directory: Path) -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    weights(lambda tensors: tensors.update({n: tensors[n][:300].clone() for n in names}))(directory)
    config(vocab_size=300, mask_token_id=0)(directory)


def no_mask_token(directory: Path) -> None:
    edit("config.json", lambda document: document.pop("mask_token_id"))(directory)
    edit("tokenizer.json", lambda document: document["added_tokens"].pop())(directory)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "absent": (shutil.rmtree, "no such checkpoint directory"),
    "no config": (remove("config.json"), "no config.json"),
    "no family": (write("config.json", "{}"), "model_type None is no block-diffusion family"),
    "unknown family": (config(model_type="nosuch"), "model_type 'nosuch' is no block-diffusion"),
    "not converted": (config(model_type="qwen3"), "'qwen3' is autoregressive; convert it first"),
    "other width": (config(hidden_size=40), "weights do not fit config.json"),
    "cut short": (cut("model.safetensors", 100), "model.safetensors: damaged or cut short"),
    "pickle": (only_a_pickle, "pytorch_model.bin is a pickle, convert it to safetensors first"),
    "no shard": (a_shard_short, "model-00002-of-00002.safetensors"),
    "no head": (
        weights(lambda tensors: tensors.pop("lm_head.weight")),
        "lm_head.weight is missing; set tie_word_embeddings to true",
    ),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer.json"),
    "corrupt tokenizer": (cut("tokenizer.json", 100), "cannot load the tokenizer"),
    "empty tokenizer": (write("tokenizer.json", "{}"), "cannot load the tokenizer"),
    "corrupt settings": (write("tokenizer_config.json", "{"), "cannot load the tokenizer"),
    "small vocabulary": (fewer_embeddings, "the tokenizer has 400 tokens, the model only"),
    "no template": (remove("chat_template.jinja"), "chat template is missing or broken"),
    "bad template": (write("chat_template.jinja", "{% for"), "chat template is missing or broken"),
    "no mask": (no_mask_token, "names a mask token; add mask_token_id to config.json"),
    "mask beyond": (config(mask_token_id=400), "mask_token_id 400 is no token of the vocabulary"),
    "block 0": (config(block_size=0), "block_size must be a number from 1 up, got 0"),
    "stop beyond": (stop(400), "eos_token_id 400 is no token of the vocabulary of 400"),
    "stop text": (stop("x"), "eos_token_id 'x' is no token of the vocabulary of 400"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named(copy: Path, name: str) -> None:
    damage, part = DAMAGES[name]
    damage(copy)
    with pytest.raises(ValueError, match=re.escape(part)) as caught:
        from_pretrained(copy)
    message = str(caught.value)
    assert message.startswith(str(copy)), message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["no/such/directory", "./nosuch", "/nosuch", "no such"])
def test_a_path_that_is_not_there_is_no_question_to_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match="no such checkpoint directory"):
        from_pretrained(name)


def test_a_name_that_the_hub_lacks() -> None:
    with pytest.raises(ValueError, match="nosuch/model: neither a directory nor a model of the"):
        from_pretrained("nosuch/model")


@pytest.mark.parametrize("family", ["sdar", "nosuch"])
def test_remote_code_is_never_run(copy: Path, family: str, capsys: pytest.CaptureFixture[str]):
    """Neither run nor offered to be: published checkpoints name a modeling file of their own."""
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config(auto_map=classes, model_type=family)(copy)
    edit("tokenizer_config.json", lambda d: d.update(auto_map={"AutoTokenizer": ["evil.T", None]}))(
        copy
    )
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    if family == "sdar":
        assert from_pretrained(copy).model.config.model_type == "sdar"
    else:
        with pytest.raises(ValueError, match="no block-diffusion family"):
            from_pretrained(copy)
    assert not (copy / "ran").exists()
    assert "custom code" not in capsys.readouterr().out


def test_a_saved_model_loads_unchanged(lm: LanguageModel, saved: Path) -> None:
    loaded = from_pretrained(str(saved))
    assert loaded.name == str(saved)
    assert loaded.weights_hash == hash_weights(saved)
    assert not loaded.model.training
    ids = (lm.mask_token_id, lm.pad_token_id, lm.stop_token_ids)
    assert (loaded.mask_token_id, loaded.pad_token_id, loaded.stop_token_ids) == ids
    state, expected = loaded.model.state_dict(), lm.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    text = "On Monday Tom buys 3 more. Ünïcödé <|MASK>"
    assert loaded.encode_prompts([text]) == lm.encode_prompts([text])
    # The generation settings name both stop tokens, the end of a turn first.
    document = json.loads((saved / "generation_config.json").read_text())
    assert document["eos_token_id"] == list(lm.stop_token_ids)


def test_saving_twice_gives_the_same_files(saved: Path, tmp_path: Path) -> None:
    from_pretrained(saved).save(tmp_path / "again")
    names = sorted(path.name for path in saved.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    # Where it was loaded from is noted there.
    names.remove("tokenizer_config.json")
    for name in names:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_weights_do_not_depend_on_their_files(saved: Path, copy: Path) -> None:
    a_shard_short(copy)
    tensors = load_file(saved / "model.safetensors")
    rest = {name: tensors[name] for name in sorted(tensors)[5:]}
    save_file(rest, copy / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    state = from_pretrained(copy).model.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("key", ["block_size", "mask_token_id"])
def test_an_autoregressive_checkpoint_is_to_be_converted(
    lm: LanguageModel, tmp_path: Path, family: str, key: str
) -> None:
    """Arguments do not make a block-diffusion model of one that was never trained as such."""
    wrap(tiny(family=family, vocab_size=400), lm.tokenizer, "memory").save(tmp_path)
    edit("config.json", lambda document: document.pop(key))(tmp_path)
    with pytest.raises(ValueError, match=f"without {key} is autoregressive; convert it first"):
        from_pretrained(tmp_path, block_size=4, mask_token_id=399)


@pytest.mark.parametrize("same", [False, True])
def test_the_head_follows_the_weights(copy: Path, tmp_path: Path, same: bool) -> None:
    """A configuration may say that it is tied to the embedding where the weights hold another."""
    config(tie_word_embeddings=True)(copy)
    if same:
        embedding = "model.embed_tokens.weight"
        weights(lambda t: t.update({"lm_head.weight": t[embedding].clone()}))(copy)
    tensors = load_file(copy / "model.safetensors")
    loaded = from_pretrained(copy)
    assert loaded.model.config.tie_word_embeddings is same
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)
    loaded.save(tmp_path / "again")
    assert ("lm_head.weight" in load_file(tmp_path / "again" / "model.safetensors")) is not same
    state = from_pretrained(tmp_path / "again").model.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)


LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n\n{% endif %}"
)


def test_a_turn_ends_as_its_template_says_and_every_stop_token_stays(
    lm: LanguageModel, tmp_path: Path
) -> None:
    """As in Llama 3: the end of text comes first in its list, another token ends a turn."""
    tokenizer = deepcopy(lm.tokenizer)
    tokenizer.add_special_tokens(
        {"bos_token": "<|begin|>", "additional_special_tokens": ["<|start|>", "<|eom|>", "<|eot|>"]}
    )
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = LLAMA3_CHAT
    wrap(tiny(family="llama", vocab_size=len(tokenizer)), tokenizer, "memory").save(tmp_path)
    ids = tokenizer.get_vocab()
    listed = [ids["<|im_end|>"], ids["<|eom|>"], ids["<|eot|>"]]
    stop(listed)(tmp_path)
    edit("generation_config.json", lambda d: d.update(temperature=0.6, do_sample=False))(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.stop_token_ids[0] == ids["<|eot|>"]
    assert set(loaded.stop_token_ids) == {*listed, ids["<|endoftext|>"]}
    assert loaded.encode_responses(["3"])[0][-1] == ids["<|eot|>"]
    # Settings of sampling that contradict each other are no obstacle to saving.
    loaded.save(tmp_path / "again")
    assert from_pretrained(tmp_path / "again").stop_token_ids == loaded.stop_token_ids


def test_both_stop_tokens_of_sdar_are_known_without_generation_settings(
    lm: LanguageModel, copy: Path
) -> None:
    """Its tokenizer's end of text is no end of a turn."""
    (copy / "generation_config.json").unlink()
    edit("tokenizer_config.json", lambda d: d.update(eos_token="<|endoftext|>"))(copy)
    config(eos_token_id=lm.stop_token_ids[1])(copy)
    assert from_pretrained(copy).stop_token_ids == lm.stop_token_ids


def test_a_model_of_the_hub_is_its_snapshot(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache holds links to blobs; what no checkpoint needs is not downloaded."""
    home, commit = tmp_path / "models--some--model", "0" * 40
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (home / folder).mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(saved.iterdir())):
        shutil.copy(file, home / "blobs" / str(number))
        link = home / "snapshots" / commit / file.name
        link.symlink_to(Path("..") / ".." / "blobs" / str(number))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded, expected = from_pretrained("some/model"), from_pretrained(saved)
    assert loaded.name == "some/model"
    assert loaded.weights_hash == expected.weights_hash
    state = expected.model.state_dict()
    assert all(torch.equal(w, state[k]) for k, w in loaded.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_loads_as_asked(copy: Path, dtype: torch.dtype) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: weight.bfloat16() for name, weight in tensors.items()})

    weights(halve)(copy)
    tensors = load_file(copy / "model.safetensors")
    state = from_pretrained(copy, dtype=dtype).model.state_dict()
    assert all(torch.equal(state[name], tensors[name].to(dtype)) for name in tensors)


def test_the_attention_of_a_published_config_is_no_order(copy: Path) -> None:
    config(attn_implementation="flex_attention", fuse_cross_entropy=True)(copy)
    assert from_pretrained(copy).model.config._attn_implementation == "sdpa"
    eager = from_pretrained(copy, attn_implementation="eager")
    assert eager.model.config._attn_implementation == "eager"


def test_arguments_fill_what_the_checkpoint_lacks(copy: Path) -> None:
    no_mask_token(copy)
    edit("config.json", lambda document: document.pop("block_size"))(copy)
    loaded = from_pretrained(copy, mask_token_id=0, block_size=8, dtype=torch.float64)
    assert (loaded.mask_token_id, loaded.model.config.mask_token_id) == (0, 0)
    assert loaded.model.config.block_size == 8
    assert loaded.model.dtype == torch.float64


def test_the_tokenizer_names_the_mask_where_the_config_does_not(
    lm: LanguageModel, copy: Path
) -> None:
    edit("config.json", lambda document: document.pop("mask_token_id"))(copy)
    assert from_pretrained(copy).mask_token_id == lm.mask_token_id


def test_text_of_a_response_ends_before_its_stop_token(lm: LanguageModel) -> None:
    (ids,) = lm.encode_responses(["The answer is 3."])
    assert ids[-1] == lm.stop_token_ids[0]
    assert lm.decode([*ids, *ids]) == "The answer is 3."
    assert lm.decode(ids[:-1]) == "The answer is 3."


def test_a_prefix_goes_on_the_template_and_a_verbatim_prompt_replaces_it(lm: LanguageModel):
    plain, begun, fixed = lm.encode_examples(
        [
            Example("a", "How many coins are left?"),
            Example("b", "How many coins are left?", prefix="Now"),
            Example("c", "How many coins are left?", verbatim="Now"),
        ]
    )
    assert plain == lm.encode_prompt("How many coins are left?")
    assert fixed == lm.tokenizer("Now", add_special_tokens=False)["input_ids"]
    assert begun == plain + fixed
