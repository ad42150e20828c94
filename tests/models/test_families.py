"""Every family is the library's own model with a block mask: as loaded, decoded and trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from t3d.core.blocks import BlockLayout, Coordinates
from t3d.core.trajectory import labelled_row
from t3d.decoding.cache import SlotCache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Request
from t3d.models import FAMILIES, BlockDiffusionLM, family_of, from_pretrained, wrap
from t3d.models.attention import additive_mask, attention_mask, dense_mask
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.methods import build_method
from t3d.training.run import fit

VOCABULARY = 64
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ARCHITECTURES = {
    "sdar": "SDARForCausalLM",
    "sdar_moe": "SDARMoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def ids(batch: int = 2, length: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator)


def grid(batch: int, width: int, size: int = 4) -> Coordinates:
    return BlockLayout(size).clean(torch.full((batch,), width), width)


def original(model: BlockDiffusionLM, directory: Path) -> PreTrainedModel:
    """The library's autoregressive model from the saved weights, by their names on disk."""
    model.save_pretrained(directory)
    path = directory / "config.json"
    document = json.loads(path.read_text())
    kind = FAMILIES[document["model_type"]].autoregressive
    path.write_text(json.dumps({**document, "model_type": kind}))
    settings = AutoConfig.from_pretrained(directory, experts_implementation="eager")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, config=settings, dtype=model.dtype, output_loading_info=True
    )
    stock, report = loaded
    assert not any(report.values())
    assert type(stock) is not type(model)
    assert type(stock).__module__.startswith("transformers.")
    return stock.eval()


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_logits_are_those_of_the_library(family: str, tied: bool, tmp_path: Path):
    """With a causal mask the model that it was, with a block mask the model that it became."""
    model = tiny(family=family, tie_word_embeddings=tied, initializer_range=0.3)
    stock, x = original(model, tmp_path), ids()
    causal = torch.ones(11, 11, dtype=torch.bool).tril().expand(2, 1, 11, 11)
    expected = stock(input_ids=x).logits
    torch.testing.assert_close(model(x, causal).logits, expected, rtol=0, atol=1e-6)
    blocks = torch.arange(11) // 4
    visible = (blocks[:, None] >= blocks[None]).expand(2, 1, 11, 11)
    block = stock(input_ids=x, attention_mask=additive_mask(visible, torch.float64))
    torch.testing.assert_close(model(x).logits, block.logits, rtol=0, atol=1e-6)
    assert (block.logits - expected).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
# PyTorch's own, when it first imports its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def test_all_attention_implementations_agree(family: str):
    """By the default mask, and by the mask of the training layout."""
    model = tiny(family=family, dtype=torch.float32, initializer_range=0.3, head_dim=16)
    packed = BlockLayout(4).training(torch.tensor([3, 6]), torch.tensor([11, 8]), num_views=2)
    x, logits = ids(2, packed.position.shape[1]), {}
    for implementation in ("sdpa", "eager", "flex_attention"):
        model.set_attn_implementation(implementation)
        mask = attention_mask(implementation, packed, packed, torch.float32)
        logits[implementation] = (model(ids()).logits, model(x, mask, packed.position).logits)
    for actual in logits.values():
        torch.testing.assert_close(actual, logits["sdpa"], rtol=0, atol=2e-5)


@torch.no_grad()
def test_cached_logits_are_those_of_a_full_pass(family: str, rename_cache: Callable[[type], str]):
    model, x, size = tiny(family=family), ids(2, 14), 4
    rename_cache(type(model.base_model))
    cache = SlotCache(model.config, 2, 14, dtype=model.dtype, device=model.device)
    expected = model(x).logits
    for start in range(0, 14, size):
        end = min(start + size, 14)
        whole = grid(2, end)
        block = Coordinates(*(c[:, start:] for c in (whole.position, whole.block, whole.stream)))
        cache.place(torch.arange(2)[:, None], block.position)
        mask = dense_mask(block, grid(2, 14))
        logits = model(x[:, start:end], mask, block.position, cache).logits
        torch.testing.assert_close(logits, expected[:, start:end], rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_saved_model_loads_unchanged_whole_and_in_shards(family: str, tmp_path: Path):
    model = tiny(family=family, dtype=torch.float32)
    classes = FAMILIES[family]
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    loaded = []
    for name in ("whole", "shards"):
        loaded.append(classes.model_class.from_pretrained(tmp_path / name).eval())
        for key, weight in model.state_dict().items():
            assert torch.equal(loaded[-1].state_dict()[key], weight), key
    assert torch.equal(loaded[0](ids()).logits, loaded[1](ids()).logits)
    # Kernels for groups of experts round otherwise than a loop over them.
    torch.testing.assert_close(loaded[0](ids()).logits, model(ids()).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scaling", [{"rope_type": "default", "rope_theta": 1e6}, LLAMA3])
def test_the_config_file_is_in_the_published_layout(
    family: str, tmp_path: Path, scaling: dict[str, Any]
):
    """What engines read that do not know transformers 5; and it reads back as itself."""
    model = tiny(family=family, dtype=torch.bfloat16, rope_parameters=scaling)
    model.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    rest = {key: value for key, value in scaling.items() if key != "rope_theta"}
    expected: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "rope_theta": scaling["rope_theta"],
        "rope_scaling": None if scaling["rope_type"] == "default" else rest,
        "torch_dtype": "bfloat16",
        "block_size": 4,
        "mask_token_id": VOCABULARY - 1,
        "head_dim": 8,
        "eos_token_id": None,
    }
    if family == "sdar_moe":
        expected["num_experts"] = 4
    assert {key: document[key] for key in expected} == expected
    again = FAMILIES[family].config_class.from_pretrained(tmp_path)
    assert again.rope_parameters == scaling
    # Without what only transformers 5 writes, too.
    for key in ("rope_parameters", "dtype", "num_local_experts"):
        document.pop(key, None)
    old = FAMILIES[family].config_class.from_dict(document)
    assert old.rope_parameters == scaling
    assert old.to_diff_dict() == again.to_diff_dict()


def test_weights_carry_the_names_of_the_hub(tmp_path: Path):
    """Every expert by itself."""
    tiny(family="sdar_moe", num_hidden_layers=1, num_experts=2).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = {name for name in file.keys() if ".mlp." in name}  # noqa: SIM118
    experts = {f"experts.{i}.{name}_proj" for i in (0, 1) for name in ("gate", "up", "down")}
    assert names == {f"model.layers.0.mlp.{name}.weight" for name in experts | {"gate"}}


def test_the_size_of_a_head_is_computed_where_the_config_lacks_it(family: str):
    if family == "sdar":
        # Qwen3 has a default of its own.
        assert tiny(family=family, head_dim=128).config.head_dim == 128
    else:
        assert tiny(family=family, head_dim=None, hidden_size=64).config.head_dim == 16


def test_experts_are_grouped_and_their_router_has_no_loss():
    settings = tiny(family="sdar_moe", output_router_logits=True).config
    assert settings.output_router_logits is False  # type: ignore[attr-defined]
    grouped = tiny(family="sdar_moe", experts_implementation=None).config
    assert grouped._experts_implementation == "grouped_mm"


def test_the_library_defaults_of_a_family_hold(family: str):
    """Fields of a base that a family's library class sets otherwise."""
    classes = FAMILIES[family]
    stock = transformers.CONFIG_MAPPING[classes.autoregressive]().to_dict()
    ours = classes.config_class().to_dict()
    own = {"model_type", "block_size", "mask_token_id", "head_dim"}
    own |= {"bos_token_id", "eos_token_id"} if family == "llama" else set()
    assert {k: v for k, v in ours.items() if k not in own} == {
        k: v for k, v in stock.items() if k not in own
    }


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_an_autoregressive_family_is_to_be_converted(family: str):
    with pytest.raises(ValueError, match=f"'{family}' is autoregressive; convert it first"):
        family_of(family)


@pytest.mark.parametrize("family", ["gpt2", None, 3, ["sdar"]])
def test_an_unknown_family_is_refused(family: object):
    with pytest.raises(ValueError, match="no block-diffusion family of t3d \\(sdar, sdar_moe,"):
        family_of(family)


def test_the_engine_decodes_as_the_oracle(family: str):
    model = tiny(family=family, vocab_size=50)
    settings = DecodingConfig(
        denoising_steps=2,
        remasking="low_confidence_dynamic",
        max_new_tokens=10,
        confidence_threshold=0.5,
    )
    special: dict[str, Any] = {"mask_token_id": 49, "stop_token_ids": (3,)}
    requests = [Request(ids(1, n)[0].remainder(49).tolist(), seed=n) for n in (1, 4, 6)]
    actual = BlockDecoder(model, settings, batch_size=2, **special).decode(requests)
    for completion, request in zip(actual, requests, strict=True):
        expected = decode_one(model, request, settings, **special)
        assert completion.response_ids == expected.response_ids
        assert completion.step_map == expected.step_map
        torch.testing.assert_close(completion.log_probs, expected.log_probs, rtol=0, atol=1e-9)


def test_it_trains_and_what_was_trained_loads(family: str, tmp_path: Path):
    examples = get_task("mini_gsm").examples("train", 8)
    tokenizer = train_tokenizer([e.question for e in examples], vocab_size=300)
    model = tiny(family=family, vocab_size=len(tokenizer), initializer_range=0.1)
    lm = wrap(cast(BlockDiffusionLM, nn.Module.to(model, torch.float32)), tokenizer, "tiny")
    before = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
    rows = [
        labelled_row(p, r, i, fill_id=lm.pad_token_id, mask_id=lm.mask_token_id, block_size=4)
        for i, (p, r) in enumerate(
            zip(lm.encode_examples(examples), lm.encode_responses(["3"] * 8), strict=True)
        )
    ]
    settings = TrainingConfig(steps=1, batch_size=8, micro_batch_size=8, warmup_steps=0)
    fit(
        lm, build_method(MethodConfig("sft")), rows, settings, tmp_path / "training", progress=False
    )
    for name, weight in lm.model.named_parameters():
        assert not torch.equal(weight, before[name]), name
    lm.save(tmp_path / "saved")
    loaded = from_pretrained(tmp_path / "saved")
    assert type(loaded.model) is type(lm.model)
    state = lm.model.state_dict()
    assert all(torch.equal(w, state[name]) for name, w in loaded.model.state_dict().items())
    special = (lm.mask_token_id, lm.pad_token_id, lm.stop_token_ids)
    assert (loaded.mask_token_id, loaded.pad_token_id, loaded.stop_token_ids) == special
    text = "On Monday Tom buys 3 more. Ünïcödé <|MASK>"
    assert loaded.encode_prompt(text) == lm.encode_prompt(text)
