"""SDAR is Qwen3 with a block mask, and is stored so that other engines load it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from t3d.core.blocks import BlockLayout, Coordinates
from t3d.models import SDARConfig, SDARForCausalLM
from t3d.models.attention import additive_mask, attention_mask, dense_mask
from t3d.testing import tiny

VOCABULARY = 64


def ids(batch: int = 2, length: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator)


def grid(batch: int, width: int, size: int = 4) -> Coordinates:
    return BlockLayout(size).clean(torch.full((batch,), width), width)


def qwen3(model: SDARForCausalLM, dtype: torch.dtype) -> Qwen3ForCausalLM:
    """The library's stock model with the same weights."""
    shape = {
        name: getattr(model.config, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "rope_parameters",
            "tie_word_embeddings",
        )
    }
    stock = Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
    stock.load_state_dict(model.state_dict(), strict=True)
    for weight in stock.parameters():
        weight.data = weight.data.to(dtype)
    return stock


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_logits_are_those_of_stock_qwen3_under_the_block_mask(dtype: torch.dtype, tied: bool):
    model = tiny(dtype=dtype, tie_word_embeddings=tied, initializer_range=0.3)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    stock = qwen3(model, dtype)
    blocks = torch.arange(11) // 4
    visible = (blocks[:, None] >= blocks[None]).expand(2, 1, 11, 11)
    expected = stock(input_ids=ids(), attention_mask=additive_mask(visible, dtype)).logits
    torch.testing.assert_close(model(ids()).logits, expected, rtol=0, atol=1e-6)
    causal = stock(input_ids=ids()).logits
    assert (causal - expected).abs().max() > 0.1


@torch.no_grad()
def test_the_default_mask_is_block_causal():
    model = tiny(block_size=4)
    logits, x = model(ids()).logits, ids()
    mask = dense_mask(grid(2, 11), grid(2, 11))
    assert torch.equal(model(x, mask).logits, logits)
    # A change is seen from its own block on, and nowhere before.
    for position in (0, 3, 4, 10):
        changed = x.clone()
        changed[:, position] = (x[:, position] + 1) % VOCABULARY
        differs = (model(changed).logits - logits).abs().amax((0, 2)) > 1e-9
        assert differs.tolist() == [p >= position // 4 * 4 for p in range(11)]


def test_without_a_block_size_there_is_no_default_mask():
    model = tiny()
    model.config.block_size = None
    with pytest.raises(ValueError, match="config.block_size is not set; pass attention_mask"):
        model(ids())
    mask = dense_mask(grid(2, 11), grid(2, 11))
    assert model(ids(), mask).logits.shape == (2, 11, VOCABULARY)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
# PyTorch's own, when it first imports its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@torch.no_grad()
# Compiling takes longer than all other tests together, and needs a C++ compiler.
@torch.compiler.set_stance("force_eager")
def test_all_attention_implementations_agree(implementation: str):
    model, atol = tiny(dtype=torch.float32, initializer_range=0.3, head_dim=16), 1e-5
    expected = model(ids()).logits
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(ids()).logits, expected, rtol=0, atol=atol)
    packed = BlockLayout(4).training(torch.tensor([3, 6]), torch.tensor([11, 8]), num_views=2)
    x = ids(2, packed.position.shape[1])
    mask = attention_mask(implementation, packed, packed, torch.float32)
    actual = model(x, mask, packed.position).logits
    model.set_attn_implementation("sdpa")
    expected = model(x, dense_mask(packed, packed), packed.position).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@torch.no_grad()
def test_select_is_indexing_the_full_logits():
    model = tiny()
    select = torch.rand((2, 11), generator=torch.Generator().manual_seed(1)) < 0.4
    actual = model(ids(), select=select).logits
    assert actual.shape == (int(select.sum()), VOCABULARY)
    torch.testing.assert_close(actual, model(ids()).logits[select], rtol=0, atol=1e-12)
    nothing = model(ids(), select=torch.zeros_like(select)).logits
    assert nothing.shape == (0, VOCABULARY)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    theta = {"rope_type": "default", "rope_theta": 1e6}
    tiny(dtype=torch.bfloat16, rope_parameters=theta).save_pretrained(directory)
    return directory


def test_the_config_file_is_in_the_published_layout(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    expected = {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "rope_theta": 1e6,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "block_size": 4,
        "mask_token_id": VOCABULARY - 1,
        "vocab_size": VOCABULARY,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": False,
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("tied", [False, True])
def test_weights_carry_the_names_of_the_hub(tmp_path: Path, tied: bool):
    tiny(num_hidden_layers=1, tie_word_embeddings=tied).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    layer = {f"self_attn.{name}_proj" for name in "qkvo"}
    layer |= {"self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"}
    layer |= {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    expected = {f"model.layers.0.{name}.weight" for name in layer}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert names == (expected if tied else expected | {"lm_head.weight"})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_reloaded_logits_are_equal_to_the_last_bit(tmp_path: Path, tied: bool, dtype: torch.dtype):
    theta = {"rope_type": "default", "rope_theta": 5e5}
    tiny(tie_word_embeddings=tied, rope_parameters=theta).save_pretrained(tmp_path / "first")
    model = SDARForCausalLM.from_pretrained(tmp_path / "first", dtype=dtype).eval()
    model.save_pretrained(tmp_path)
    again = SDARForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(again(ids()).logits, model(ids()).logits)
    auto = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert type(auto) is SDARForCausalLM
    assert auto.dtype == dtype
    assert torch.equal(auto(ids()).logits, model(ids()).logits)


PUBLISHED: dict[str, Any] = {
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 32768,
    "max_window_layers": 2,
    "model_type": "sdar",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.3",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}
"""The keys of a published checkpoint: top-level rope_theta, neither block size nor mask."""


@torch.no_grad()
def test_a_published_config_loads_with_its_own_theta(saved: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    weights = (saved / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SDARConfig
    assert config.to_diff_dict()["rope_theta"] == 1e6
    assert config.block_size is None
    assert config.mask_token_id is None
    model = SDARForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = SDARForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    mask = dense_mask(grid(2, 11), grid(2, 11))
    assert torch.equal(model(ids(), mask).logits, ours(ids(), mask).logits)
    # Theta matters: at 10000 the same weights predict something else.
    ours.model.rotary_emb.inv_freq.copy_(10_000.0 ** -(torch.arange(0, 8, 2) / 8))
    assert not torch.allclose(model(ids(), mask).logits, ours(ids(), mask).logits, atol=1e-2)


def test_saving_and_loading_says_nothing(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """transformers warns of `torch_dtype` once a process, so its memory is cleared first."""
    root = logging.getLogger("transformers")
    type(root).warning_once.cache_clear()  # type: ignore[attr-defined]
    root.addHandler(caplog.handler)
    try:
        config = AutoConfig.from_pretrained(saved)
        repr(config)
        model = SDARForCausalLM.from_pretrained(saved, config=config, dtype=torch.float32)
        model.save_pretrained(tmp_path)
    finally:
        root.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
