"""Load and save a model together with its tokenizer and the ids that decoding needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from t3d.models.sdar import SDARConfig, SDARForCausalLM
from t3d.provenance import hash_weights

MASK_TOKEN = "<|MASK|>"
BUILT_IN = {"mini_teacher": Path(__file__).parent.parent / "assets" / "mini_teacher"}
"""Checkpoints that ship with the package."""


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

    def encode_prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """The chat template around one user turn each, ready for the assistant's answer."""
        texts = [
            str(
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": question}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
            for question in questions
        ]
        return self._encode(texts)

    def encode_prompt(self, question: str) -> list[int]:
        return self.encode_prompts([question])[0]

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
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: cannot load a model from there: {_first_line(error)}") from None
    if not isinstance(config, SDARConfig):
        raise ValueError(
            f"{name}: model_type {config.model_type!r} is no block-diffusion family of t3d (sdar)"
        )
    mask, pad, stops = _special_ids(tokenizer, name, mask_token_id or config.mask_token_id)
    config.mask_token_id = mask
    config.block_size = block_size or config.block_size
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{config.vocab_size} embeddings; they do not belong together"
        )
    try:
        model, report = SDARForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{name}: cannot load the weights: {_first_line(error)}") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            first = sorted(str(key) for key in report[problem])[0]
            raise ValueError(f"{name}: weights do not fit config.json: {problem}, first {first}")
    local = Path(source)
    weights = hash_weights(local) if local.is_dir() else None
    return LanguageModel(
        model.to(torch.device(device)).eval(), tokenizer, mask, pad, stops, name, weights
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _check_directory(directory: Path) -> None:
    """Say what a local directory lacks before transformers looks for it on the Hub."""
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory}: no config.json; name a checkpoint directory")
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(p.name for p in [*directory.glob("*.bin"), *directory.glob("*.pt*")])
        remedy = f"; {pickled[0]} is a pickle, convert it to safetensors first" if pickled else ""
        raise ValueError(f"{directory}: no *.safetensors weights{remedy}")
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(f"{directory}: no tokenizer.json")
