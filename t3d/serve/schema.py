"""Requests and answers in OpenAI's shape, with what block diffusion adds to them.

Answers are built from these classes and dumped without what is unset, so the schema that the
server publishes is the one that it keeps to.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from t3d.core.trajectory import FinishReason
from t3d.decoding.config import DecodingConfig

MOST_ALTERNATIVES = 20
_WORD = 2**31 - 1
_NOT_ASKED = (None, 0, "", [], {}, "none", "auto", "default", {"type": "text"})


def _not_asked(value: Any) -> Any:
    if value not in _NOT_ASKED:
        raise ValueError("is not supported here; leave it out")
    return value


Number = Annotated[int, Field(ge=-_WORD, le=_WORD)]
Unsupported = Annotated[Any, AfterValidator(_not_asked)]
"""A field of OpenAI's that is taken at a value that asks for nothing."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _decoding_fields() -> dict[str, Any]:
    """The fields of a decoding setting that a request may name; None is the default of the model.

    A checkpoint that drafts is the server's to load, and the number of tokens has OpenAI's names.
    """
    hints = get_type_hints(DecodingConfig)
    names = {field.name for field in fields(DecodingConfig)} - {"draft_model", "max_new_tokens"}
    kinds: dict[str, Any] = {
        name: Number if hints[name] in (int, int | None) else hints[name] for name in names
    }
    return {name: (kinds[name] | None, None) for name in sorted(names)}


Decoding = create_model("Decoding", __base__=_Strict, **_decoding_fields())


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    denoising: bool | None = None
    """Whether every commit is streamed."""


class Asked(Decoding):
    """What both kinds of requests have."""

    model: str
    n: Annotated[Number, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[Number, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    frequency_penalty: Unsupported = None
    presence_penalty: Unsupported = None
    logit_bias: Unsupported = None

    @model_validator(mode="after")
    def _check(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: give them with stream alone")
        if "" in self.stops:
            raise ValueError("stop: an empty string ends every text; leave it out")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_denoising(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.denoising)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def decoding(self) -> dict[str, Any]:
        """The fields of a decoding setting that the request names."""
        return self.model_dump(include={*Decoding.model_fields}, exclude_none=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Turn(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Asked):
    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[Number, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Number, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None

    response_format: Unsupported = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    parallel_tool_calls: bool | None = None
    service_tier: Unsupported = None
    functions: Unsupported = None
    modalities: Unsupported = None
    reasoning_effort: Unsupported = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs to be true")
        return self

    @property
    def num_tokens(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens

    @property
    def num_alternatives(self) -> int | None:
        """Number of alternatives beside each token's log-probability; None for neither."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Asked):
    prompt: (
        str
        | Annotated[list[Number], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[list[Number]], Field(min_length=1)]
    )
    logprobs: Annotated[Number, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None

    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Unsupported = None

    @property
    def num_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def num_alternatives(self) -> int | None:
        return self.logprobs


class Alternative(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None
    """The token's text in UTF-8; null where the token is a part of a character."""


class TokenLogprob(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Passes(BaseModel):
    """Forward passes of one choice by kind, see `t3d.decoding.request.Passes`."""

    prefill: int
    denoising: int
    commit: int
    total: int
    tokens: int
    drafted: int
    accepted: int
    drafts: int


class Layout(BaseModel):
    """Where a response lies on the grid of blocks."""

    prompt_tokens: int
    block_size: int
    max_tokens: int


class Commit(BaseModel):
    """The tokens that one denoising step committed."""

    step: int
    number: int = Field(serialization_alias="pass")
    positions: list[int]
    token_ids: list[int]
    texts: list[str]
    log_probs: list[float]


class AnswerChoice(BaseModel):
    """What choices of every kind have; in a stream the first chunk has the layout, those between
    may have a commit, and the last one has the rest."""

    index: int
    finish_reason: FinishReason | None = None
    layout: Layout | None = None
    denoising: Commit | None = None
    token_ids: list[int] | None = None
    texts: list[str] | None = None
    step_map: list[int] | None = None
    tokens_per_forward: float | None = None
    passes: Passes | None = None


class Message(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(AnswerChoice):
    message: Message
    logprobs: ChatLogprobs | None


class ChatChunkChoice(AnswerChoice):
    delta: Delta
    logprobs: ChatLogprobs | None


class CompletionChoice(AnswerChoice):
    text: str
    logprobs: CompletionLogprobs | None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(BaseModel):
    """What answers and chunks of every kind have."""

    id: str
    object: str
    created: int
    model: str
    seed: int | None = None
    decoding: dict[str, Any] | None = None
    """The whole setting that the choices were decoded with."""
    usage: Usage | None = None


class ChatAnswer(Answer):
    choices: list[ChatChoice]


class ChatChunk(Answer):
    choices: list[ChatChunkChoice]


class CompletionAnswer(Answer):
    """The answer to a completion; its chunks have the same shape."""

    choices: list[CompletionChoice]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["t3d"] = "t3d"
    positions: int
    """Tokens of prompt and response together at most."""
    decoding: dict[str, Any]
    """The setting of requests that name none."""
    weights_hash: str | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok", "failed"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail
