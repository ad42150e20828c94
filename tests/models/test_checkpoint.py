"""Sound checkpoints pass, whatever wrote them; of unsound ones no tensor or byte is overlooked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from t3d.models import from_pretrained
from t3d.models.checkpoint import check_checkpoint, tensor_shapes
from t3d.models.families import FAMILIES, family_of
from t3d.testing import tiny
from tests.models.malformed import (
    EMBEDDING,
    FITTING,
    HEAD,
    INDEX,
    SHARDS,
    WEIGHTS,
    config,
    edit,
    link,
    remove,
    save_families,
    shard,
    sharded,
    split_header,
    tensors,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_families(tmp_path_factory.mktemp("models"))


def test_links_of_the_hubs_cache_are_followed(saved: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(saved / "sdar", snapshot)
    sharded(link(SHARDS[0], "../../blobs/0"), link(SHARDS[1], "../../blobs/1"))(snapshot)
    assert (snapshot / SHARDS[0]).is_symlink()
    assert check_checkpoint(snapshot)["model_type"] == "sdar"
    remove(SHARDS[0])(snapshot)
    shutil.copytree(saved / "sdar", tmp_path / "models--c--d")
    (snapshot / SHARDS[0]).symlink_to(tmp_path / "models--c--d" / WEIGHTS)
    with pytest.raises(ValueError, match="a link out of its directory"):
        check_checkpoint(snapshot)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_is_welcome(saved: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    copy = shutil.copytree(saved / "sdar", tmp_path / "copy")
    tensors(lambda s: s.update({name: s[name].to(dtype) for name in s}))(copy)
    check_checkpoint(copy)


def test_a_file_of_the_older_library_is_welcome(saved: Path, tmp_path: Path) -> None:
    """RoPE's base at the top level only, and experts counted as published."""
    copy = shutil.copytree(saved / "sdar_moe", tmp_path / "copy")
    edit("config.json", lambda d: d.update(num_experts=4))(copy)
    edit(
        "config.json", lambda d: [d.pop(k, None) for k in ("rope_parameters", "num_local_experts")]
    )(copy)
    assert "rope_parameters" not in check_checkpoint(copy)


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    groups = draw(st.integers(1, 2))
    heads, layers = groups * draw(st.integers(1, 2)), draw(st.integers(1, 3))
    values: dict[str, Any] = {
        "num_key_value_heads": groups,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "hidden_size": 4 * heads,
        "head_dim": 4 if family == "qwen2" else draw(st.sampled_from([2, 4, 6])),
        "intermediate_size": draw(st.integers(1, 9)),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
    }
    if family == "sdar_moe":
        values["num_experts"] = draw(st.integers(2, 3))
        values["moe_intermediate_size"] = draw(st.integers(2, 9))
        values["decoder_sparse_step"] = draw(st.integers(1, 2))
        values["mlp_only_layers"] = draw(st.lists(st.integers(0, layers - 1), unique=True))
    return family, values


@settings(max_examples=25)
@given(drawn=configurations())
def test_shapes_are_those_that_the_library_saves(
    drawn: tuple[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    family, values = drawn
    directory = tmp_path_factory.mktemp("saved")
    model = tiny(family=family, dtype=torch.float32, **values)
    model.save_pretrained(directory)
    (directory / "tokenizer.json").touch()
    document = check_checkpoint(directory)
    assert document == json.loads((directory / "config.json").read_text())
    shapes = tensor_shapes(family_of(family).config_class.from_dict(document))
    if values["tie_word_embeddings"]:
        assert shapes.pop(HEAD) == shapes[EMBEDDING]
    state = load_file(directory / WEIGHTS)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    shutil.rmtree(directory)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_counts(saved: Path, tmp_path: Path, family: str) -> None:
    """Without any one, and with any one larger, the checkpoint is refused by its name."""
    copy = shutil.copytree(saved / family, tmp_path / "copy")
    state = load_file(saved / family / WEIGHTS)
    for name, tensor in state.items():
        rest = {key: value for key, value in state.items() if key != name}
        save_file(rest, copy / WEIGHTS)
        with pytest.raises(ValueError, match=re.escape(f"{name} is missing")):
            check_checkpoint(copy)
        save_file({**rest, name: torch.cat([tensor, tensor])}, copy / WEIGHTS)
        with pytest.raises(ValueError, match=re.escape(f"{name} has shape")):
            check_checkpoint(copy)


def test_a_tied_head_may_be_absent(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved / "sdar", tmp_path / "copy")
    config(tie_word_embeddings=True)(copy)
    check_checkpoint(copy)
    tensors(lambda s: s.pop(HEAD))(copy)
    check_checkpoint(copy)


FUZZED = ("config.json", INDEX, SHARDS[0])


@given(
    file=st.sampled_from(FUZZED),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    end=st.floats(0, 1) | st.none(),
)
def test_noise_is_refused_or_changes_nothing(
    saved: Path,
    tmp_path_factory: pytest.TempPathFactory,
    file: str,
    places: list[tuple[float, int]],
    end: float | None,
) -> None:
    """Bytes of JSON exchanged or cut off: a ValueError, or a model with the same logits."""
    copy = shutil.copytree(saved / FITTING, tmp_path_factory.mktemp("fuzz") / "copy")
    shard(copy)
    data = bytearray((copy / file).read_bytes())
    size = len(data)
    if file == SHARDS[0]:
        size -= len(split_header(bytes(data))[1])
    for place, flip in places:
        data[int(place * size)] ^= flip
    if end is not None:
        del data[int(end * size) :]
    (copy / file).write_bytes(data)
    ids = torch.arange(24).reshape(2, 12)
    try:
        check_checkpoint(copy)
        loaded = from_pretrained(copy, block_size=4).model
    except ValueError as error:
        message = str(error)
        assert message.startswith(str(copy)), message
        assert "\n" not in message
        return
    sound = from_pretrained(saved / FITTING, block_size=4).model
    # What a digit of config.json says about the arithmetic cannot be told from what was meant.
    keys = ("rms_norm_eps", "hidden_act", "rope_parameters")
    if all(getattr(loaded.config, key) == getattr(sound.config, key) for key in keys):
        assert torch.equal(loaded(ids).logits, sound(ids).logits)
    shutil.rmtree(copy)
