"""Load and save a model together with its tokenizer and the ids that decoding needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from t3d.core.dtypes import Dtype, dtype_name, torch_dtype
from t3d.core.files import first_words
from t3d.core.provenance import hash_weights
from t3d.core.workers import own_device
from t3d.models.block_diffusion import BlockDiffusionConfig, BlockDiffusionLM
from t3d.models.checkpoint import check_checkpoint
from t3d.models.families import Family, family_of
from t3d.models.files import read_generation
from t3d.models.limits import render
from t3d.models.tokenizers import locate, read_tokenizer, token_text
from t3d.tasks import Example
from t3d.tasks.tokenizer import MASK_TOKEN


@dataclass(frozen=True)
class LanguageModel:
    """A block-diffusion model, its tokenizer and special ids."""

    model: BlockDiffusionLM
    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    name: str
    """Origin of the model: a path, a Hub name or a built-in name."""
    weights_hash: str | None
    """SHA-256 of the safetensors files; None for weights that only live in memory."""

    @property
    def dtype(self) -> str:
        """Name of the number format of the weights, as files keep it."""
        return dtype_name(self.model.dtype)

    @cached_property
    def banned_token_ids(self) -> tuple[int, ...]:
        """Ids that are neither generated nor drawn as noise.

        They are the mask token, pad unless it is a stop token, and vocabulary rows without text.
        """
        padding = set(range(self.model.config.vocab_size)) - {*self.tokenizer.get_vocab().values()}
        return tuple(
            sorted({self.mask_token_id, self.pad_token_id, *padding} - {*self.stop_token_ids})
        )

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        """Pattern of the texts that the tokenizer turns into control tokens."""
        own = {self.mask_token_id, self.pad_token_id, *self.stop_token_ids}
        added = self.tokenizer.added_tokens_decoder.items()
        texts = [t.content for id, t in added if t.special or id in own]
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def check_content(self, name: str, *texts: str) -> None:
        """Check that a user's texts hold no control token.

        Raises:
            ValueError: naming the first one; it would forge a turn, end one, or be a mask.
        """
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{name}: the text holds half a character ({text[error.start]!a}); "
                    "give it as UTF-8 or drop it"
                ) from None
            if found := self._control_tokens.search(text):
                raise ValueError(
                    f"{name}: the text holds {found[0]}, a control token of {self.name}; "
                    "respell it or drop the text"
                )

    def encode_examples(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of the problems' prompts, up to where the model continues.

        Raises:
            ValueError: for a question or prefix that holds a control token, and a verbatim prompt
                that holds the mask token.
        """
        for example in examples:
            self.check_content(example.id, example.question, example.prefix)
        prompts = self._encode([self._prompt(example) for example in examples])
        for example, ids in zip(examples, prompts, strict=True):
            if self.mask_token_id in ids:
                raise ValueError(f"{example.id}: the prompt holds the mask token; drop it")
        return prompts

    def encode_prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of each question in the chat template, ready for the assistant's answer.

        Raises:
            ValueError: as `encode_examples`.
        """
        return self.encode_examples(
            [Example(f"question {number}", text) for number, text in enumerate(questions)]
        )

    def encode_prompt(self, question: str) -> list[int]:
        return self.encode_prompts([question])[0]

    def _prompt(self, example: Example) -> str:
        if example.verbatim is not None:
            return example.verbatim
        question = {"role": "user", "content": example.question}
        return self.template([question]) + example.prefix

    def template(self, turns: list[dict[str, str]]) -> str:
        """A chat as the chat template has it, up to where the assistant's turn begins."""
        return str(
            self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of assistants' answers, each with its end token."""
        return [[*ids, self.stop_token_ids[0]] for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # One call for all texts: the tokenizer runs them in parallel.
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def text(self, ids: Sequence[int]) -> str:
        """The text that ids stand for, byte for byte."""
        return token_text(self.tokenizer, ids)

    def decode(self, ids: list[int]) -> str:
        """The text of a response, without its stop token."""
        stop = next((i for i, token in enumerate(ids) if token in self.stop_token_ids), len(ids))
        return self.text(ids[:stop])

    def save(self, directory: Path) -> None:
        """Write the published layout: safetensors with Hub names, config, tokenizer.

        Raises:
            ValueError: for weights that are not finite; nothing is written then.
        """
        check_finite(str(directory), self.model.state_dict())
        # Set again, since a trainer changes the model's.
        self.model.generation_config = self.generation_config()
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def generation_config(self) -> GenerationConfig:
        """The special ids alone; a checkpoint's settings of sampling may be invalid."""
        return GenerationConfig(
            eos_token_id=list(self.stop_token_ids), pad_token_id=self.pad_token_id
        )


def check_finite(name: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Check that a model's weights are finite, and their squares too.

    Raises:
        ValueError: naming the first that holds NaN, infinity, or numbers whose squares overflow.
    """
    for key, weight in weights.items():
        dtype = torch.promote_types(weight.dtype, torch.float32)
        if not torch.linalg.vector_norm(weight, dtype=dtype).isfinite():
            raise ValueError(
                f"{name}: {key} holds NaN, infinity or numbers near it; train again with a lower "
                "learning_rate, or copy the weights again"
            )


def _mask_token(tokenizer: PreTrainedTokenizerBase, config: BlockDiffusionConfig, name: str) -> int:
    """The configuration's mask token, else the tokenizer's."""
    mask = config.mask_token_id
    if mask is None:
        mask = tokenizer.get_vocab().get(MASK_TOKEN)
    if mask is None:
        raise ValueError(
            f"{name}: neither config.json (mask_token_id) nor the tokenizer ({MASK_TOKEN}) "
            "names a mask token; add mask_token_id to config.json"
        )
    if not isinstance(mask, int) or not 0 <= mask < config.vocab_size:
        raise ValueError(
            f"{name}: mask_token_id {mask!r} is no token of the vocabulary of "
            f"{config.vocab_size}; correct it in config.json"
        )
    return mask


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """The token that the chat template puts behind an answer; none where the template changes the
    answer, leaves it out or puts text behind it.

    Raises:
        ValueError: for a template that is missing or broken, or that leaves the question out.
    """
    # These hold blanks, upper case and signs, which a template may change.
    question, answer = (f"1 < 2 & 'b'\n  Is it so? ({said})" for said in ("Asked", "Told"))
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        prompt = render(tokenizer, chat[:1], add_generation_prompt=True)
        text = render(tokenizer, chat)
    # A template is a program of the checkpoint, which may raise anything.
    except Exception as error:
        raise ValueError(
            f"{name}: the tokenizer's chat template is missing or broken, or prints without end; "
            "add or correct chat_template.jinja"
        ) from error
    if question not in prompt:
        raise ValueError(
            f"{name}: the tokenizer's chat template drops or changes the question, which is given "
            "as text and not as a list of parts; correct chat_template.jinja"
        )
    _, found, behind = text.rpartition(answer)
    ids = tokenizer(behind if found else "", add_special_tokens=False)["input_ids"]
    return [token for token in ids if token in tokenizer.added_tokens_decoder][:1]


def _stop_tokens(
    tokenizer: PreTrainedTokenizerBase, model: BlockDiffusionLM, name: str
) -> tuple[int, ...]:
    """Every token that ends a response, the one that ends a turn first."""
    eos = None if model.generation_config is None else model.generation_config.eos_token_id
    listed = [
        *(_end_of_turn(tokenizer, name) or [tokenizer.eos_token_id]),
        *(eos if isinstance(eos, list) else [eos]),
        tokenizer.eos_token_id,
        tokenizer.get_vocab().get("<|endoftext|>"),
    ]
    stops = [token for token in listed if token is not None]
    if not stops:
        raise ValueError(f"{name}: the tokenizer has no end-of-turn token; set its eos_token")
    for token in stops:
        if not isinstance(token, int) or not 0 <= token < model.config.vocab_size:
            raise ValueError(
                f"{name}: eos_token_id {token!r} is no token of the vocabulary of "
                f"{model.config.vocab_size}; correct it in generation_config.json"
            )
    return tuple(dict.fromkeys(stops))


def wrap(
    model: BlockDiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    weights_hash: str | None = None,
) -> LanguageModel:
    """A language model from its parts.

    Raises:
        ValueError: for a missing mask token, or a tokenizer without a chat template.
    """
    mask = model.config.mask_token_id = _mask_token(tokenizer, model.config, name)
    stops = _stop_tokens(tokenizer, model, name)
    pad = tokenizer.pad_token_id
    pad = pad if isinstance(pad, int) else stops[-1]
    lm = LanguageModel(model, tokenizer, mask, pad, stops, name, weights_hash)
    model.generation_config = lm.generation_config()
    return lm


def from_pretrained(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: Dtype | torch.dtype = "float32",
    attn_implementation: str = "sdpa",
    block_size: int | None = None,
    mask_token_id: int | None = None,
) -> LanguageModel:
    """Load a block-diffusion model from a checkpoint directory, the Hub or the package.

    No remote code is executed and no pickle is read. The name `mini_teacher` is the model
    that ships with the package.

    >>> t3d.from_pretrained("mini_teacher").model.config.block_size
    4

    Args:
        name_or_path: a directory, a Hub name, or a built-in name.
        device: device of the weights; by default the GPU of this process, if there is one. With
            meta no weight is read: the model encodes and decodes text, and computes nothing.
        dtype: number format of the weights in memory, whatever it is on disk. Training needs
            float32; commands decode in auto, which is bfloat16 on a GPU and float32 on a CPU.
        attn_implementation: sdpa, flex_attention or eager.
        block_size: training block size, where config.json lacks it.
        mask_token_id: id of the mask token, where config.json and the tokenizer lack it.

    Raises:
        ValueError: for a missing or corrupt checkpoint, an unknown family, a missing mask
            token, or a tokenizer that does not fit the model.
    """
    name = str(name_or_path)
    place = own_device() if device is None else torch.device(device)
    kind = dtype if isinstance(dtype, torch.dtype) else torch_dtype(dtype, place)
    source = locate(name)
    document = check_checkpoint(source)
    family = family_of(document["model_type"])
    config = family.config_class.from_dict(document)
    tokenizer = read_tokenizer(source, name)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{config.vocab_size} embeddings; they do not belong together"
        )
    config.mask_token_id = config.mask_token_id if mask_token_id is None else mask_token_id
    config.mask_token_id = _mask_token(tokenizer, config, name)
    config.block_size = size = config.block_size if block_size is None else block_size
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"{name}: block_size must be a number from 1 up, got {size!r}")
    options: dict[str, Any] = {"dtype": kind, "attn_implementation": attn_implementation}
    model: Any
    if place.type == "meta":
        model = _described(family, source, config, options)
    else:
        model = nn.Module.to(_loaded(name, family, source, config, options), place)
    return wrap(model.eval(), tokenizer, name, hash_weights(source))


def _loaded(
    name: str, family: Family, source: Path, config: BlockDiffusionConfig, options: dict[str, Any]
) -> BlockDiffusionLM:
    try:
        loaded: Any = family.model_class.from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:
        raise ValueError(f"{name}: cannot load the model: {first_words(error)}") from error
    model, report = loaded
    assert not any(report.values())
    check_finite(name, model.state_dict())
    # The library ties head and embedding only if the checkpoint's are equal, or has no head.
    model.config.tie_word_embeddings = model.lm_head.weight is model.model.embed_tokens.weight
    return model


def _described(
    family: Family, source: Path, config: BlockDiffusionConfig, options: dict[str, Any]
) -> BlockDiffusionLM:
    """The model without its weights."""
    with torch.device("meta"):
        model = family.model_class._from_config(config, **options)
    eos = read_generation(source).get("eos_token_id")
    model.generation_config = GenerationConfig(eos_token_id=eos)
    return model
