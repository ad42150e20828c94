"""The modeling file of an exported folder: forms of the mask, the cache, and what it refuses."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from t3d.interop.checkpoints.layout import write_code
from t3d.testing import tiny

SIZE, LENGTH = 4, 12
NAMES = ("cache", "past_key_values")
"""Of the cache, in transformers since 5.24 and before it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Loaded by the folder's own class."""
    folder = tmp_path_factory.mktemp("modeling") / "sdar"
    tiny(dtype=torch.float32, initializer_range=0.2).save_pretrained(folder)
    write_code(folder)
    package = types.ModuleType("exported_sdar")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    code = importlib.import_module("exported_sdar.modeling_sdar")
    return code.SDARForCausalLM.from_pretrained(folder).eval()


def ids() -> Tensor:
    return torch.randint(0, 63, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def visible() -> Tensor:
    blocks = torch.arange(LENGTH) // SIZE
    return (blocks[:, None] >= blocks).expand(2, 1, -1, -1)


@torch.no_grad()
def test_forms_of_the_block_mask_agree(model: Any) -> None:
    logits = model(ids()).logits
    added = torch.zeros(2, 1, LENGTH, LENGTH).masked_fill(~visible(), -torch.inf)
    ones = torch.ones(2, LENGTH, dtype=torch.long)
    for mask in (visible(), visible()[:, 0], visible()[:, 0].float(), added, ones):
        torch.testing.assert_close(model(ids(), attention_mask=mask).logits, logits)
    assert not torch.allclose(model(ids(), attention_mask=added * 0).logits, logits)


@torch.no_grad()
def test_padding_is_not_seen(model: Any) -> None:
    """A last block cut short gives what it gives without the padding."""
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, 10:] = False
    padded = model(ids(), attention_mask=mask).logits
    torch.testing.assert_close(padded[:1, :10], model(ids()[:1, :10]).logits)
    torch.testing.assert_close(padded[1:], model(ids()[1:]).logits)
    assert model(ids(), attention_mask=mask.flip(1)).logits.isfinite().all()


@torch.no_grad()
def decode_with_cache(model: Any, name: str) -> list[Any]:
    """The outputs of every block, twice not stored and then stored; checked against no cache."""
    whole, cache, outputs = model(ids()).logits, DynamicCache(), []
    for start in range(0, LENGTH, SIZE):
        block = ids()[:, start : start + SIZE]
        for store in (False, False, True):
            outputs.append(model(block, **{name: cache}, use_cache=True, store_kv=store))
            wanted = whole[:, start : start + SIZE]
            torch.testing.assert_close(outputs[-1].logits, wanted)
            assert cache.get_seq_length() == start + (SIZE if store else 0)
            assert sum(value is cache for value in outputs[-1].values()) == 1
    return outputs


@pytest.mark.parametrize("name", NAMES)
def test_a_block_that_is_not_stored_leaves_no_trace(model: Any, name: str) -> None:
    decode_with_cache(model, name)


@pytest.mark.parametrize("name", NAMES)
def test_releases_differ_in_the_name_of_the_cache(
    model: Any, name: str, rename_cache: Callable[[type], str]
) -> None:
    """Callers may use either name, whichever one the library has."""
    library = rename_cache(transformers.Qwen3ForCausalLM)
    for output in decode_with_cache(model, name):
        assert isinstance(output[library], DynamicCache)


def test_it_refuses_what_would_be_wrong(model: Any) -> None:
    with pytest.raises(NotImplementedError, match="does not decode from left to right"):
        model.generate(ids())
    with pytest.raises(ValueError, match="labels: the loss of transformers shifts them"):
        model(ids(), labels=ids())


def test_engines_find_theta_where_they_read_it(model: Any) -> None:
    assert model.config.rope_theta == model.config.rope_parameters["rope_theta"]
    assert not hasattr(model.config, "nothing")
