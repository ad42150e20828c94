"""What a request asks the engine for: prompts as token ids, one setting, room for the answers."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from t3d.core.files import first_words
from t3d.core.rng import derive_key
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Request
from t3d.models.loading import LanguageModel
from t3d.serve.config import ServeConfig
from t3d.serve.schema import ChatRequest, CompletionRequest
from t3d.serve.served import Served, room
from t3d.tasks import Example

MOST_STEPS = 1024
"""Denoising steps of a block at most; ancestral decoding would take any number."""
_FIELDS = {field.name for field in fields(DecodingConfig)}


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: one sentence that says what is wrong and what to do.
        param: the field that it is about.
        code: OpenAI's name for it, where there is one.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def type(self) -> str:
        if self.status >= 500:
            return "server_error"
        known = {401: "authentication_error", 429: "rate_limit_error"}
        return known.get(self.status, "invalid_request_error")

    @property
    def body(self) -> dict[str, Any]:
        """The answer, in OpenAI's shape."""
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": told}


@dataclass(frozen=True)
class Plan:
    """All responses that one request asks for, in the order of their indices."""

    requests: list[Request]
    num_prompt_tokens: int
    """Number of tokens of all prompts, each counted once."""
    seed: int
    decoding: dict[str, Any]
    """The setting, as the answer tells it."""


def plan(served: Served, asked: ChatRequest | CompletionRequest, settings: ServeConfig) -> Plan:
    """What the engine is to decode.

    Raises:
        Refused: for whatever cannot be decoded.
    """
    config = _config(served, asked.decoding)
    param = "messages" if isinstance(asked, ChatRequest) else "prompt"
    try:
        if isinstance(asked, ChatRequest):
            prompts = _encode(served.lm, [_chat(served.lm, asked)])
        else:
            prompts = _prompts(served.lm, asked)
    except ValueError as error:
        raise Refused(400, str(error), param) from None
    num = len(prompts) * (asked.n or 1)
    if num > settings.max_choices:
        message = f"{num} choices are asked for, {settings.max_choices} is the most; ask for fewer"
        raise Refused(400, message, "n")
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    wanted = asked.num_tokens or config.max_new_tokens
    requests = []
    for prompt in prompts:
        left = _checked_room(served, config, len(prompt), settings.max_prompt_tokens, param)
        limit = min(wanted, left, settings.max_tokens or left)
        for _ in range(asked.n or 1):
            key = derive_key(seed, len(requests))
            requests.append(Request(prompt, key, limit, config, asked.num_alternatives or 0))
    return Plan(requests, sum(map(len, prompts)), seed, asdict(config) | {"max_new_tokens": wanted})


def _config(served: Served, changes: dict[str, Any]) -> DecodingConfig:
    try:
        config = replace(served.decoding, **changes)
    except ValueError as error:
        param = str(error).partition(" ")[0]
        raise Refused(400, str(error), param if param in _FIELDS else None) from None
    if config.block_size > served.positions:
        message = (
            f"block_size={config.block_size} is more than the {served.positions} positions of "
            f"{served.name}; give a smaller one"
        )
        raise Refused(400, message, "block_size")
    if config.denoising_steps > MOST_STEPS:
        message = f"denoising_steps must be at most {MOST_STEPS}, got {config.denoising_steps}"
        raise Refused(400, message, "denoising_steps")
    # Drafted states take slots of the cache, as if they were further tokens.
    if config.most_states > 1 and config.most_states * config.block_size > served.positions:
        raise Refused(
            400,
            f"draft_states={config.draft_states} are up to {config.most_states} states of "
            f"{config.block_size} tokens in one pass, more than the {served.positions} positions "
            f"of {served.name}; give fewer",
            "draft_states",
        )
    return config


def _chat(lm: LanguageModel, asked: ChatRequest) -> str:
    """The chat as the model's template has it.

    Raises:
        ValueError: for a text with a control token, and turns that the template refuses.
    """
    turns = []
    for number, turn in enumerate(asked.messages):
        lm.check_content(f"messages.{number}", turn.text)
        role = "system" if turn.role == "developer" else turn.role
        turns.append({"role": role, "content": turn.text})
    try:
        return lm.template(turns)
    # A template is a program of the checkpoint, which may raise anything.
    except Exception as error:
        raise ValueError(
            f"the chat template of the model refuses these messages: {first_words(error)}"
        ) from error


def _prompts(lm: LanguageModel, asked: CompletionRequest) -> list[list[int]]:
    prompt: Any = asked.prompt
    if isinstance(prompt, str):
        return _encode(lm, [prompt])
    if isinstance(prompt[0], str):
        return _encode(lm, prompt)
    prompts = [prompt] if isinstance(prompt[0], int) else prompt
    vocabulary = range(lm.model.config.vocab_size)
    for token in (token for ids in prompts for token in ids):
        if token not in vocabulary or token == lm.mask_token_id:
            raise ValueError(
                f"token id {token} is the mask token or none of the model's vocabulary of "
                f"{len(vocabulary)}; encode the prompt with the model's own tokenizer"
            )
    return prompts


def _encode(lm: LanguageModel, texts: list[str]) -> list[list[int]]:
    return lm.encode_examples(
        [Example(f"prompt {number}", "", verbatim=text) for number, text in enumerate(texts)]
    )


def _checked_room(
    served: Served, config: DecodingConfig, length: int, most: int | None, param: str
) -> int:
    """The room behind a prompt.

    Raises:
        Refused: if there is none, or the prompt is empty or longer than allowed.
    """
    if length == 0:
        raise Refused(400, "the prompt is empty; there is nothing to continue", param)
    left = room(served, config, length)
    if left < 1 or (most is not None and length > most):
        fitting = length + left - 1
        allowed = fitting if most is None else min(most, fitting)
        raise Refused(
            400,
            f"the prompt has {length} tokens, {served.name} takes {allowed} at most; shorten it",
            param,
            "context_length_exceeded",
        )
    return left
