"""The answer to one request: its jobs, and what they become in OpenAI's shape."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from t3d.decoding.request import Event
from t3d.serve.engine import Engine, Job, QueueFull, Report, Stopped
from t3d.serve.plan import Plan, Refused
from t3d.serve.schema import (
    Alternative,
    Answer,
    AnswerChoice,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    Commit,
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    Layout,
    Message,
    Passes,
    TokenLogprob,
    Usage,
)
from t3d.serve.served import Served
from t3d.serve.transcript import Token, Transcript


class Responses:
    """The responses to one request while they are decoded; `close` frees the slots of the rest.

    Raises:
        Refused: if the queue is full, or the engine has stopped.
    """

    def __init__(self, engine: Engine, served: Served, plan: Plan, stops: list[str]) -> None:
        self.served, self.plan, self._engine = served, plan, engine
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._jobs = [
            Job(served.name, request, self._reports, index)
            for index, request in enumerate(plan.requests)
        ]
        self.transcripts = [
            Transcript(served.lm.text, served.lm.stop_token_ids, stops, request.max_new_tokens or 0)
            for request in plan.requests
        ]
        try:
            engine.submit(self._jobs)
        except QueueFull as error:
            after = {"Retry-After": str(error.seconds)}
            raise Refused(429, str(error), None, "queue_full", after) from None
        except Stopped as error:
            raise Refused(503, str(error)) from None

    async def events(self) -> AsyncIterator[tuple[int, Event, str]]:
        """Index, event and the text that it made final, until all responses have ended.

        Raises:
            Refused: if decoding failed.
        """
        left = len(self._jobs)
        while left:
            index, event = await self._reports.get()
            if isinstance(event, Exception):
                raise _failed(event)
            transcript = self.transcripts[index]
            if transcript.finish_reason is not None:
                continue
            text = transcript.take(event)
            if transcript.finish_reason is not None:
                left -= 1
                # A stop string ends a response before the engine does.
                self._engine.cancel([self._jobs[index]])
            yield index, event, text

    def close(self) -> None:
        self._engine.cancel(self._jobs)

    @property
    def num_tokens(self) -> int:
        return sum(len(transcript.tokens) for transcript in self.transcripts)

    @property
    def usage(self) -> Usage:
        prompt, response = self.plan.num_prompt_tokens, self.num_tokens
        return Usage(
            prompt_tokens=prompt, completion_tokens=response, total_tokens=prompt + response
        )

    def layout(self, index: int) -> Layout:
        request = self.plan.requests[index]
        assert request.config is not None
        assert request.max_new_tokens is not None
        return Layout(
            prompt_tokens=len(request.prompt_ids),
            block_size=request.config.block_size,
            max_tokens=request.max_new_tokens,
        )

    def commit(self, event: Event) -> Commit:
        return Commit(
            step=event.step,
            number=event.passes.total,
            positions=event.places,
            token_ids=event.token_ids,
            texts=[self._text(token) for token in event.token_ids],
            log_probs=event.log_probs,
        )

    def end(self, index: int) -> dict[str, Any]:
        """What is known of a choice once it has ended."""
        transcript = self.transcripts[index]
        tokens, passes = transcript.tokens, transcript.passes
        return {
            "finish_reason": transcript.finish_reason,
            "token_ids": [token.id for token in tokens],
            "texts": [self._text(token.id) for token in tokens],
            "step_map": [token.step for token in tokens],
            "tokens_per_forward": len(tokens) / passes.denoising,
            "passes": Passes(total=passes.total, **asdict(passes)),
        }

    def _text(self, token: int) -> str:
        """The text of a token alone; empty for one that ends a response."""
        return "" if token in self.served.lm.stop_token_ids else self.served.lm.text([token])

    def alternatives(self, found: dict[int, float]) -> list[Alternative]:
        lm = self.served.lm
        return [_alternative(lm.text([token]), value) for token, value in found.items()]

    def text_tokens(self, index: int, start: int) -> list[Token]:
        """The final tokens of a response from `start` on, without a stop token."""
        transcript = self.transcripts[index]
        return transcript.tokens[start : transcript.num_text_tokens]


def _failed(error: Exception) -> Refused:
    if isinstance(error, Stopped):
        return Refused(503, str(error))
    if isinstance(error, ValueError):
        # The decoder begins with the number that it gave the request.
        return Refused(400, str(error).partition(": ")[2])
    return Refused(500, "decoding failed, maybe for lack of memory; try again, or a shorter one")


def _alternative(text: str, value: float) -> Alternative:
    whole = None if "\ufffd" in text else list(text.encode())
    return Alternative(token=text, logprob=value, bytes=whole)


@dataclass(frozen=True)
class Chat:
    """The shape of answers to `/v1/chat/completions`.

    Args:
        responses: what is decoded.
        has_logprobs: whether the request asks for them.
    """

    responses: Responses
    has_logprobs: bool

    prefix = "chatcmpl-"
    name, chunk_name = "chat.completion", "chat.completion.chunk"
    answer_type, chunk_type = ChatAnswer, ChatChunk

    def choice(self, text: str, index: int, **more: Any) -> AnswerChoice:
        message = Message(role="assistant", content=text, refusal=None)
        return ChatChoice(message=message, logprobs=self._logprobs(index, 0), index=index, **more)

    def opening(self, index: int, **more: Any) -> AnswerChoice:
        delta = Delta(role="assistant", content="")
        return ChatChunkChoice(delta=delta, logprobs=None, index=index, finish_reason=None, **more)

    def piece(self, text: str, index: int, start: int, **more: Any) -> AnswerChoice:
        delta = Delta(content=text) if text else Delta()
        logprobs = self._logprobs(index, start) if text else None
        return ChatChunkChoice(delta=delta, logprobs=logprobs, index=index, **more)

    def _logprobs(self, index: int, start: int) -> ChatLogprobs | None:
        if not self.has_logprobs:
            return None
        content = []
        for token in self.responses.text_tokens(index, start):
            [own] = self.responses.alternatives({token.id: token.log_prob})
            others = self.responses.alternatives(token.alternatives)
            content.append(
                TokenLogprob(
                    token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=others
                )
            )
        return ChatLogprobs(content=content, refusal=None)


@dataclass(frozen=True)
class TextCompletion:
    """The shape of answers to `/v1/completions`, see `Chat`."""

    responses: Responses
    has_logprobs: bool

    prefix = "cmpl-"
    name = chunk_name = "text_completion"
    answer_type = chunk_type = CompletionAnswer

    def choice(self, text: str, index: int, **more: Any) -> AnswerChoice:
        logprobs = self._logprobs(index, 0)
        return CompletionChoice(text=text, logprobs=logprobs, index=index, **more)

    def opening(self, index: int, **more: Any) -> AnswerChoice:
        return CompletionChoice(text="", logprobs=None, index=index, finish_reason=None, **more)

    def piece(self, text: str, index: int, start: int, **more: Any) -> AnswerChoice:
        logprobs = self._logprobs(index, start) if text else None
        return CompletionChoice(text=text, logprobs=logprobs, index=index, **more)

    def _logprobs(self, index: int, start: int) -> CompletionLogprobs | None:
        if not self.has_logprobs:
            return None
        responses = self.responses
        tokens = responses.text_tokens(index, 0)
        texts = [responses.served.lm.text([token.id]) for token in tokens]
        offsets = [sum(map(len, texts[:number])) for number in range(start, len(texts))]
        top = [
            {other.token: other.logprob for other in responses.alternatives(token.alternatives)}
            for token in tokens[start:]
        ]
        return CompletionLogprobs(
            tokens=texts[start:],
            token_logprobs=[token.log_prob for token in tokens[start:]],
            top_logprobs=top if any(top) else None,
            text_offset=offsets,
        )


Shape = Chat | TextCompletion


def _frame(shape: Shape) -> dict[str, Any]:
    """What an answer and all its chunks have in common."""
    return {
        "id": f"{shape.prefix}{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": shape.responses.served.name,
    }


async def whole(shape: Shape) -> Answer:
    """The answer, once all responses have ended."""
    responses, texts = shape.responses, [""] * len(shape.responses.transcripts)
    async for index, _, text in responses.events():
        texts[index] += text
    choices: list[Any] = [
        shape.choice(text, index, layout=responses.layout(index), **responses.end(index))
        for index, text in enumerate(texts)
    ]
    return shape.answer_type(
        object=shape.name,
        choices=choices,
        usage=responses.usage,
        seed=responses.plan.seed,
        decoding=responses.plan.decoding,
        **_frame(shape),
    )


async def chunks(shape: Shape, *, denoising: bool, usage: bool) -> AsyncIterator[Answer]:
    """The answer in pieces: an opening a choice, text and commits as they come, an end a choice.

    Args:
        denoising: whether every commit is told.
        usage: whether a last chunk says the number of tokens.
    """
    responses, frame = shape.responses, _frame(shape)

    def chunk(*choices: Any, **more: Any) -> Answer:
        return shape.chunk_type(object=shape.chunk_name, choices=list(choices), **frame, **more)

    told = [0] * len(responses.transcripts)
    for index in range(len(told)):
        opening = shape.opening(index, layout=responses.layout(index))
        yield chunk(opening, seed=responses.plan.seed, decoding=responses.plan.decoding)
    async for index, event, text in responses.events():
        transcript = responses.transcripts[index]
        commit = {"denoising": responses.commit(event)} if denoising else {}
        if text or commit:
            yield chunk(shape.piece(text, index, told[index], finish_reason=None, **commit))
        if text:
            told[index] = transcript.num_text_tokens
        if transcript.finish_reason is not None:
            yield chunk(shape.piece("", index, told[index], **responses.end(index)))
    if usage:
        yield chunk(usage=responses.usage)
