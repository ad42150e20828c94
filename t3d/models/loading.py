"""Load and save a model together with its tokenizer and the ids that decoding needs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from t3d.models.sdar import SDARConfig, SDARForCausalLM
from t3d.provenance import hash_weights
from t3d.tasks import Example

MASK_TOKEN = "<|MASK|>"
BUILT_IN = {"mini_teacher": Path(__file__).parent.parent / "assets" / "mini_teacher"}
"""Checkpoints that ship with the package."""
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class LanguageModel:
    """A block-diffusion model, its tokenizer and special ids."""

    model: SDARForCausalLM
    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    name: str
    """Where it came from: a path, a Hub name or a built-in name."""
    weights_hash: str | None
    """sha256 of the safetensors files; None for weights that only live in memory."""

    def encode_examples(self, examples: Sequence[Example]) -> list[list[int]]:
        """The problems' prompts, up to where the model goes on in the assistant's turn."""
        return self._encode(
            [
                self._template(e.question) + e.prefix if e.verbatim is None else e.verbatim
                for e in examples
            ]
        )

    def encode_prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """The chat template around one user turn each, ready for the assistant's answer."""
        return self._encode([self._template(question) for question in questions])

    def encode_prompt(self, question: str) -> list[int]:
        return self.encode_prompts([question])[0]

    def _template(self, question: str) -> str:
        message = {"role": "user", "content": question}
        return str(
            self.tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True
            )
        )

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Assistants' answers, each with its end token."""
        return [[*ids, self.stop_token_ids[0]] for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # One call for all texts: the tokenizer runs them in parallel.
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """The text of a response, without its stop token."""
        stop = next((i for i, token in enumerate(ids) if token in self.stop_token_ids), len(ids))
        return str(self.tokenizer.decode(ids[:stop]))

    def save(self, directory: Path) -> None:
        """Write the published SDAR layout: safetensors with Hub names, config, tokenizer."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        GenerationConfig(
            eos_token_id=list(self.stop_token_ids), pad_token_id=self.pad_token_id
        ).save_pretrained(directory)


def _special_ids(
    tokenizer: PreTrainedTokenizerBase, name: str, mask_token_id: int | None
) -> tuple[int, int, tuple[int, ...]]:
    """Mask, pad and stop ids of a tokenizer, the end-of-turn token first."""
    vocabulary = tokenizer.get_vocab()
    if mask_token_id is None:
        mask_token_id = vocabulary.get(MASK_TOKEN)
    if mask_token_id is None:
        raise ValueError(
            f"{name}: neither config.json (mask_token_id) nor the tokenizer ({MASK_TOKEN}) "
            "names a mask token; add mask_token_id to config.json"
        )
    stops = [vocabulary[t] for t in ("<|im_end|>", "<|endoftext|>") if t in vocabulary]
    eos = tokenizer.eos_token_id
    if isinstance(eos, int) and eos not in stops:
        stops.insert(0, eos)
    if not stops:
        raise ValueError(f"{name}: the tokenizer has no end-of-turn token; set its eos_token")
    pad = tokenizer.pad_token_id
    return mask_token_id, pad if isinstance(pad, int) else stops[-1], tuple(stops)


def wrap(model: SDARForCausalLM, tokenizer: PreTrainedTokenizerBase, name: str) -> LanguageModel:
    """A language model from parts that live in memory."""
    mask, pad, stops = _special_ids(tokenizer, name, model.config.mask_token_id)
    model.config.mask_token_id = mask
    return LanguageModel(model, tokenizer, mask, pad, stops, name, None)


def from_pretrained(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    block_size: int | None = None,
    mask_token_id: int | None = None,
) -> LanguageModel:
    """Load a block-diffusion model from a checkpoint directory, the Hub or the package.

    No remote code is executed and no pickle is read. The name `mini_teacher` is the model
    that ships with the package.

    Args:
        name_or_path: a directory in the published SDAR layout, a Hub name, or a built-in name.
        device: where the weights go.
        dtype: of the weights.
        attn_implementation: sdpa, flex_attention or eager.
        block_size: training block size, where config.json lacks it.
        mask_token_id: id of the mask token, where config.json and the tokenizer lack it.

    Raises:
        ValueError: for a missing or corrupt checkpoint, an unknown family, a missing mask
            token, or a tokenizer that does not fit the model.
    """
    name = str(name_or_path)
    source = str(BUILT_IN[name]) if name in BUILT_IN else name
    if Path(source).is_dir():
        _check_directory(Path(source))
    elif not _HUB_NAME.fullmatch(source):
        raise ValueError(f"{name}: no such checkpoint directory")
    config = _load_config(name, source)
    try:
        # Without the refusal, a checkpoint may ask the user to run its code.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"{name}: cannot load the tokenizer ({_first_line(error)}); "
            "copy its tokenizer.json and tokenizer_config.json again"
        ) from error
    wanted = config.mask_token_id if mask_token_id is None else mask_token_id
    mask, pad, stops = _special_ids(tokenizer, name, wanted)
    config.mask_token_id = mask
    config.block_size = config.block_size if block_size is None else block_size
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{config.vocab_size} embeddings; they do not belong together"
        )
    if not isinstance(mask, int) or not 0 <= mask < config.vocab_size:
        raise ValueError(
            f"{name}: mask_token_id {mask!r} is no token of the vocabulary of "
            f"{config.vocab_size}; correct it in config.json"
        )
    size = config.block_size
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"{name}: block_size must be a number from 1 up, got {size!r}")
    try:
        loaded: Any = SDARForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            # They are in the report, which is the clearer error.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ValueError(f"{name}: cannot load the model: {_first_line(error)}") from error
    model, report = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            first = sorted(report[problem])[0]
            if not isinstance(first, str):
                key, found, wanted = first
                first = f"{key} with shape {list(found)}, not {list(wanted)}"
            raise ValueError(f"{name}: weights do not fit config.json: {problem}, first {first}")
    local = Path(source)
    weights = hash_weights(local) if local.is_dir() else None
    model = model.to(torch.device(device)).eval()
    lm = LanguageModel(model, tokenizer, mask, pad, stops, name, weights)
    try:
        lm.encode_prompt("")
    except (ValueError, TemplateError) as error:
        raise ValueError(
            f"{name}: the tokenizer's chat template is missing or broken; "
            "add or correct chat_template.jinja"
        ) from error
    return lm


def _load_config(name: str, source: str) -> SDARConfig:
    """config.json, which must be of the family; its auto_map is never followed."""
    try:
        document, _ = SDARConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: neither a directory nor a model of the Hub: {_first_line(error)}"
        ) from error
    family = document.get("model_type")
    if family != SDARConfig.model_type:
        raise ValueError(
            f"{name}: model_type {family!r} is no block-diffusion family of t3d (sdar)"
        )
    try:
        return SDARConfig.from_dict(document)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{name}: config.json is no SDAR configuration: {reason}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_directory(directory: Path) -> None:
    """Say what a local directory lacks before transformers looks for it on the Hub."""
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory}: no config.json; name a checkpoint directory")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a JSON object")
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        pickled = sorted(p.name for p in [*directory.glob("*.bin"), *directory.glob("*.pt*")])
        remedy = f"; {pickled[0]} is a pickle, convert it to safetensors first" if pickled else ""
        raise ValueError(f"{directory}: no *.safetensors weights{remedy}")
    for shard in shards:
        try:
            with safe_open(shard, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{shard}: damaged or cut short ({error}); copy it again") from None
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(f"{directory}: no tokenizer.json")
