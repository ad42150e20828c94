"""Checkpoints on disk: what is saved loads unchanged, and what is wrong is named."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from t3d.models import LanguageModel, from_pretrained, tiny, wrap
from t3d.provenance import hash_weights
from t3d.tasks import Example, get_task
from t3d.tasks.tokenizer import train_tokenizer

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


def edit(file: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(directory: Path) -> None:
        document = json.loads((directory / file).read_text())
        change(document)
        (directory / file).write_text(json.dumps(document))

    return damage


def config(**values: Any) -> Damage:
    return edit("config.json", lambda document: document.update(values))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(directory: Path) -> None:
        file = directory / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


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


def no_mask_token(directory: Path) -> None:
    edit("config.json", lambda document: document.pop("mask_token_id"))(directory)
    edit("tokenizer.json", lambda document: document["added_tokens"].pop())(directory)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "absent": (shutil.rmtree, "no such checkpoint directory"),
    "no config": (remove("config.json"), "no config.json"),
    "corrupt config": (write("config.json", "{"), "config.json: not valid JSON"),
    "no object": (write("config.json", "[]"), "config.json: not a JSON object"),
    "no family": (write("config.json", "{}"), "model_type None is no block-diffusion family"),
    "other family": (config(model_type="llama"), "model_type 'llama' is no block-diffusion"),
    "unknown family": (config(model_type="nosuch"), "model_type 'nosuch' is no block-diffusion"),
    "wrong type": (config(hidden_size="x"), "'hidden_size' expected int, got str"),
    "no layers": (config(num_hidden_layers=3), "cannot load the model"),
    "other width": (config(hidden_size=40), "mismatched_keys, first lm_head.weight with shape"),
    "cut short": (cut("model.safetensors", 100), "model.safetensors: damaged or cut short"),
    "empty": (write("model.safetensors", ""), "model.safetensors: damaged or cut short"),
    "no weights": (remove("model.safetensors"), "no *.safetensors weights"),
    "pickle": (only_a_pickle, "pytorch_model.bin is a pickle, convert it to safetensors first"),
    "no shard": (a_shard_short, "model-00002-of-00002.safetensors"),
    "missing tensor": (
        weights(lambda tensors: tensors.pop("model.norm.weight")),
        "weights do not fit config.json: missing_keys, first model.norm.weight",
    ),
    "unknown tensor": (
        weights(lambda tensors: tensors.update(extra=torch.zeros(1))),
        "weights do not fit config.json: unexpected_keys, first extra",
    ),
    "wrong shape": (
        weights(lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)})),
        "mismatched_keys, first model.norm.weight with shape [3], not [32]",
    ),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer.json"),
    "corrupt tokenizer": (cut("tokenizer.json", 100), "cannot load the tokenizer"),
    "empty tokenizer": (write("tokenizer.json", "{}"), "cannot load the tokenizer"),
    "corrupt settings": (write("tokenizer_config.json", "{"), "cannot load the tokenizer"),
    "small vocabulary": (config(vocab_size=300), "the tokenizer has 400 tokens, the model only"),
    "no template": (remove("chat_template.jinja"), "chat template is missing or broken"),
    "bad template": (write("chat_template.jinja", "{% for"), "chat template is missing or broken"),
    "no mask": (no_mask_token, "names a mask token; add mask_token_id to config.json"),
    "mask beyond": (config(mask_token_id=400), "mask_token_id 400 is no token of the vocabulary"),
    "mask below": (config(mask_token_id=-1), "mask_token_id -1 is no token of the vocabulary"),
    "mask text": (config(mask_token_id="x"), "mask_token_id 'x' is no token of the vocabulary"),
    "block 0": (config(block_size=0), "block_size must be a number from 1 up, got 0"),
    "block text": (config(block_size="4"), "block_size must be a number from 1 up, got '4'"),
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
    text = "On Monday Tom buys 3 more. Ünïcödé <|MASK|>"
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
