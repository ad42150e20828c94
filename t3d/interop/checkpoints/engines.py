"""How SGLang and LMDeploy would read a folder: checks of the fields that they use.

The checks follow the engines' code for SDAR at the end of 2025 (`srt/models/sdar.py`,
`srt/dllm/config.py`; `pytorch/models/sdar.py`, `pytorch/configurations/sdar.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t3d.core.files import read_object

Consumer = Literal["transformers", "sglang", "lmdeploy", "t3d"]
MASK_TOKEN_ID = 151669
"""Mask token id that both engines have fixed in their code."""
BLOCK_SIZE = 4
"""Block size of both engines, unless an option says otherwise."""
MODEL_TYPES = {"SDARForCausalLM": "sdar", "SDARMoeForCausalLM": "sdar_moe"}
_KEYS = (
    "attention_bias", "head_dim", "hidden_size", "intermediate_size", "max_position_embeddings",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
    "rope_theta", "tie_word_embeddings", "torch_dtype", "vocab_size",
)  # fmt: skip
_EXPERT_KEYS = ("moe_intermediate_size", "norm_topk_prob", "num_experts", "num_experts_per_tok")
AGAIN = "write the folder again with t3d export"


@dataclass(frozen=True)
class Finding:
    """One thing that goes wrong where a folder is used."""

    consumer: Consumer
    problem: str
    remedy: str
    fatal: bool = True
    """Whether the folder cannot be used as it is; false where an option of the consumer, named in
        the remedy, is enough."""


def engine_findings(directory: Path, stop_token_ids: tuple[int, ...]) -> list[Finding]:
    """Everything that would go wrong in SGLang and in LMDeploy.

    Args:
        directory: folder with a config.json.
        stop_token_ids: the model's stop tokens; both engines read generation_config.json instead.
    """
    config = read_object(directory / "config.json", AGAIN)
    size = config.get("block_size")
    options: dict[Consumer, str] = {
        "sglang": f"block_size: {size} in the file of --dllm-algorithm-config",
        "lmdeploy": f"--dllm-block-length {size}",
    }
    found: list[Finding] = []
    for consumer, option in options.items():
        pairs = list(_problems(consumer, config, directory, stop_token_ids))
        found += [Finding(consumer, problem, remedy) for problem, remedy in pairs]
        if not pairs and size != BLOCK_SIZE:
            problem = f"decodes blocks of {BLOCK_SIZE} by default, the model's are of {size}"
            found.append(Finding(consumer, problem, f"start it with {option}", fatal=False))
    return found


def _problems(
    consumer: Consumer, config: dict[str, Any], directory: Path, stop_token_ids: tuple[int, ...]
) -> Iterator[tuple[str, str]]:
    """Pairs of a problem and its remedy."""
    name = next(iter(config.get("architectures") or ()), None)
    if name not in MODEL_TYPES:
        yield (
            f"decodes no {name} by block diffusion, only {' and '.join(MODEL_TYPES)}",
            "use transformers or t3d, or convert a model of the Qwen3 family",
        )
        return
    if config.get("model_type") != MODEL_TYPES[name]:
        kind = config.get("model_type")
        yield f"model_type {kind!r} does not go with {name}", f"set it to {MODEL_TYPES[name]!r}"
    mask = config.get("mask_token_id")
    if mask != MASK_TOKEN_ID:
        yield (
            f"fills in for mask token {MASK_TOKEN_ID} always, the model's is {mask}: wrong output",
            f"use a model with the mask token {MASK_TOKEN_ID}, such as SDAR's",
        )
    keys = _KEYS + (_EXPERT_KEYS if name == "SDARMoeForCausalLM" else ())
    for key in keys:
        if config.get(key) is None:
            wrong = ", and takes 10000 instead: wrong output" if key == "rope_theta" else ""
            yield f"reads {key}, which config.json lacks{wrong}", AGAIN
    if config.get("hidden_act") != "silu":
        yield f"computes silu, the model {config.get('hidden_act')}", "there is none"
    if config.get("use_sliding_window"):
        yield "attends to whole sequences, the model to a window", "there is none"
    if consumer == "sglang":
        yield from _sglang_problems(config)
    try:
        stops = read_object(directory / "generation_config.json", AGAIN).get("eos_token_id")
    except ValueError as error:
        yield str(error).rpartition(";")[0], AGAIN
        return
    listed = stops if isinstance(stops, list) else [stops]
    missing = [token for token in stop_token_ids if token not in listed]
    if missing:
        tokens = ", ".join(map(str, missing))
        yield (
            f"does not stop at token {tokens}, which generation_config.json does not list",
            "add it to eos_token_id there",
        )


def _sglang_problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if config.get("tie_word_embeddings"):
        yield (
            "asks for a weight of the head, which shares the embedding's: it does not load",
            "export with --untie",
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        yield "takes every layer for one of experts, the model has others", "there is none"
