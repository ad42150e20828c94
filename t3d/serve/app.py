"""The routes of the server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from t3d import __version__
from t3d.core.suggest import did_you_mean
from t3d.serve.answer import Chat, Responses, Shape, TextCompletion, chunks, whole
from t3d.serve.config import ServeConfig
from t3d.serve.engine import Engine
from t3d.serve.gate import Gate, Gone
from t3d.serve.metrics import GONE, Metrics
from t3d.serve.plan import Plan, Refused, plan
from t3d.serve.playground import playground_page
from t3d.serve.schema import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
    ErrorAnswer,
    Health,
    Model,
    ModelList,
    StreamOptions,
    TextPart,
    Turn,
)
from t3d.serve.served import Served

_STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
_KINDS = ("string_type", "list_type", "int_type")
_PARTS = {*Turn.model_fields, *TextPart.model_fields, *StreamOptions.model_fields}
T = TypeVar("T")


def make_app(
    served: Mapping[str, Served], engine: Engine, settings: ServeConfig, key: str | None
) -> Gate:
    """The ASGI application.

    Args:
        served: checkpoints by their names.
        engine: what decodes for them; it is started and closed with the application.
        settings: limits of the server.
        key: what requests must bring, if anything.
    """
    created = int(time.time())
    # One thread: tokenizers are no faster in several, and not all of them allow it.
    encoding = ThreadPoolExecutor(1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.close()

    app = FastAPI(
        title="t3d",
        version=__version__,
        lifespan=lifespan,
        # Their pages load scripts from other servers.
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": ErrorAnswer, "description": "What is wrong."}},
    )
    _handle_errors(app)
    metrics = Metrics(engine, list(served))

    def find(name: str) -> Served:
        if name not in served:
            meant = did_you_mean(name, served) or f"; there are {', '.join(served)}"
            raise Refused(404, f"no model {name!r}{meant}", "model", "model_not_found")
        return served[name]

    def describe(one: Served) -> Model:
        return Model(
            id=one.name,
            object="model",
            owned_by="t3d",
            created=created,
            positions=one.positions,
            decoding=asdict(one.decoding),
            weights_hash=one.lm.weights_hash,
        )

    async def answer(
        request: Request,
        asked: ChatRequest | CompletionRequest,
        kind: type[Chat] | type[TextCompletion],
    ) -> Response:
        one = find(asked.model)
        loop = asyncio.get_running_loop()
        planned: Plan = await loop.run_in_executor(encoding, plan, one, asked, settings)
        responses = Responses(engine, one, planned, asked.stops)
        shape = kind(responses, asked.num_alternatives is not None)
        if asked.stream:
            return _Stream(request, asked, shape)
        try:
            return _json(await _unless_gone(request, whole(shape)))
        except Gone:
            return Response(status_code=GONE)
        finally:
            responses.close()
            _record(request, responses)

    @app.post("/v1/chat/completions", responses=_answers(ChatAnswer))
    async def chat_completions(request: Request, asked: ChatRequest) -> Response:
        """An answer to a chat."""
        return await answer(request, asked, Chat)

    @app.post("/v1/completions", responses=_answers(CompletionAnswer))
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        """A continuation of a prompt as it stands."""
        return await answer(request, asked, TextCompletion)

    @app.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        """The checkpoints that are served."""
        return _json(ModelList(object="list", data=[describe(one) for one in served.values()]))

    # Names of the Hub have a slash.
    @app.get("/v1/models/{name:path}", response_model=Model)
    async def model(name: str) -> Response:
        """One checkpoint."""
        return _json(describe(find(name)))

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Whether requests are decoded."""
        if engine.is_alive:
            return _json(Health(status="ok"))
        return _json(Health(status="failed"), 503)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    made = playground_page()
    headers = {
        "Content-Security-Policy": f"{made.policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return HTMLResponse(made.html, headers=headers)

    return Gate(app, settings, key, metrics)


def _answers(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": answer, "content": _STREAM}}


def _json(value: BaseModel, status: int = 200) -> Response:
    body = value.model_dump_json(exclude_unset=True, by_alias=True)
    return Response(body, status, media_type="application/json")


def _handle_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape."""

    def tell(refused: Refused) -> Response:
        return JSONResponse(refused.body, refused.status, refused.headers)

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return tell(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return tell(_invalid(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        known = {404: f"no route {request.url.path!a}", 405: f"{request.method} is not taken here"}
        message = known.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        return tell(Refused(error.status_code, f"{message}; see docs/serve.md", headers=headers))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return tell(Refused(500, "an error of the server, which its log tells"))


def _invalid(error: RequestValidationError) -> Refused:
    """What is wrong with the first field that is."""
    found = error.errors()
    if len(found[0]["loc"]) < 2:
        said = found[0]["msg"].removeprefix("Value error, ")
        param, colon, _ = said.partition(": ")
        if colon and param.isidentifier():
            return Refused(400, said, param)
        return Refused(400, "the body must be a JSON object with the fields of the request")
    # A field that takes several kinds has an error for each, of which the plain ones say least.
    field = found[0]["loc"][1]
    of_field = [one for one in found if one["loc"][1] == field]
    told = next((one for one in of_field if one["type"] not in _KINDS), of_field[0])
    # Behind such a field stands the kind.
    place = [str(part) for part in told["loc"][2:] if isinstance(part, int) or part in _PARTS]
    param = ".".join([str(field), *place])
    if told["type"] == "extra_forbidden" and not place:
        known = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
        return Refused(400, f"unknown field {param!a}{did_you_mean(param, known)}", param[:100])
    said = told["msg"].removeprefix("Value error, ")
    return Refused(400, f"{param}: {said[:1].lower()}{said[1:]}", param)


def _record(request: Request, responses: Responses) -> None:
    """Note for log and metrics what became of the responses."""
    transcripts = responses.transcripts
    request.state.record |= {
        "model": responses.served.name,
        "choices": len(transcripts),
        "seed": responses.plan.seed,
        "prompt_tokens": responses.plan.num_prompt_tokens,
        "response_tokens": responses.num_tokens,
        "passes": sum(transcript.passes.total for transcript in transcripts),
        "finish_reasons": [transcript.finish_reason for transcript in transcripts],
    }


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is given up when the client goes away.

    Raises:
        Gone: in that case.
    """

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        task.cancel()
        gone.cancel()


class _Stream(StreamingResponse):
    """An answer as server-sent events; whatever ends it, the slots are free then."""

    def __init__(
        self, request: Request, asked: ChatRequest | CompletionRequest, shape: Shape
    ) -> None:
        self._request, self._asked, self._shape = request, asked, shape
        self._is_whole = False
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._lines(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        record = self._request.state.record
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._shape.responses.close()
            record |= {"stream": True, "gone": not self._is_whole}
            _record(self._request, self._shape.responses)

    async def _lines(self) -> AsyncIterator[str]:
        state, asked = self._request.state, self._asked
        pieces = chunks(self._shape, denoising=asked.wants_denoising, usage=asked.wants_usage)
        try:
            async for piece in pieces:
                if self._shape.responses.num_tokens and "first_text_seconds" not in state.record:
                    seconds = round(time.monotonic() - state.started, 6)
                    state.record["first_text_seconds"] = seconds
                yield f"data: {piece.model_dump_json(exclude_unset=True, by_alias=True)}\n\n"
        except Refused as refused:
            state.record["error"] = refused.message
            yield f"data: {json.dumps(refused.body)}\n\n"
        yield "data: [DONE]\n\n"
        self._is_whole = True
