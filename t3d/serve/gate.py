"""What stands before the routes: the key, the limits of a body, the log, and time for headers."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from t3d.core.files import first_words, parse_json, refuse_constant
from t3d.serve.config import API_KEY, ServeConfig
from t3d.serve.log import log
from t3d.serve.metrics import GONE, Metrics
from t3d.serve.plan import Refused

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_DRAINED = 8
"""How many times the allowed bytes are read and dropped, so that a client that has sent too much
hears of it before the connection closes."""
_OPEN = ("/", "/health")
"""Paths that need no key."""


class Gone(Exception):
    """The client has gone away."""


class Gate:
    """An ASGI application before another one.

    Args:
        app: the application.
        settings: limits of the server.
        key: what requests must bring, if anything.
        metrics: where requests are counted.
    """

    def __init__(self, app: Any, settings: ServeConfig, key: str | None, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._key = None if key is None else f"bearer {key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        record: dict[str, Any] = {}
        scope["state"] |= {"record": record, "started": started}
        status, is_whole = GONE, False

        async def told(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                is_whole = True
            await send(message)

        try:
            try:
                receive = await self._admit(scope, receive)
            except Refused as refused:
                await _tell(refused, told)
            else:
                await self._app(scope, receive, told)
        except Gone:
            pass
        except asyncio.CancelledError:
            # The grace of a stop is over, and with it the task's only duty.
            if status == GONE:
                await _tell(Refused(503, "the server was stopped before the answer's end"), told)
        finally:
            record["status"] = status if is_whole and not record.pop("gone", False) else GONE
            record["seconds"] = round(time.monotonic() - started, 6)
            route = scope.get("route")
            self._metrics.count("other" if route is None else route.path, record)
            client = scope["client"] and scope["client"][0]
            log(client=client, method=scope["method"], path=scope["path"][:200], **record)

    async def _admit(self, scope: dict[str, Any], receive: Receive) -> Receive:
        """What gives the application the body that was read and checked.

        Raises:
            Refused: for a wrong key and a body that is too large, too slow or no JSON.
            Gone: if the client went away before its end.
        """
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._key is not None and scope["path"] not in _OPEN:
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = kind.lower() + b" " + key.strip()
            if not hmac.compare_digest(given, self._key):
                raise Refused(
                    401,
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY, with "
                    f"the KEY that the server's {API_KEY} holds",
                    None,
                    "invalid_api_key",
                )
        if scope["method"] != "POST":
            return receive
        # A page of another site can send a form or plain text here, but not this type.
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise Refused(415, "send the body with the header Content-Type: application/json")
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                body = await self._read(headers, receive)
        except TimeoutError:
            seconds = self._settings.read_seconds
            raise Refused(408, f"the body did not come within {seconds:g} seconds") from None
        try:
            parse_json(body, parse_constant=refuse_constant)
        except ValueError as error:
            raise Refused(400, f"the body is no JSON: {first_words(error)}") from None
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most, length = self._settings.max_body_bytes, headers.get(b"content-length", b"0")
        too_large = Refused(413, f"the body is larger than {most} bytes; send less at once")
        # h11 lets pass digits alone, and a length of any number of them.
        if len(length) > 15 or int(length) > _DRAINED * most:
            raise too_large
        body, size, more = bytearray(), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            size += len(message["body"])
            if size <= most:
                body += message["body"]
            elif size > _DRAINED * most:
                break
            more = message.get("more_body", False)
        if size > most:
            raise too_large
        return bytes(body)


def _headers(refused: Refused, length: int) -> list[tuple[bytes, bytes]]:
    # What is left of the body is not read, so the connection is of no further use.
    own = {"Content-Type": "application/json", "Content-Length": str(length), "Connection": "close"}
    return [(k.lower().encode(), v.encode()) for k, v in (own | refused.headers).items()]


async def _tell(refused: Refused, send: Send) -> None:
    body = json.dumps(refused.body).encode()
    headers = _headers(refused, len(body))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Protocol(H11Protocol):
    """HTTP/1.1 with a time in which a request's headers must come, and errors in JSON."""

    header_seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._timer is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, b"Bad Request", msg)

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        message = f"the headers did not come within {self.header_seconds:g} seconds"
        self._refuse(408, b"Request Timeout", message)

    def _refuse(self, status: int, reason: bytes, message: str) -> None:
        """Answer what is no request, and close the connection."""
        if self.transport.is_closing():
            return
        refused = Refused(status, message)
        body = json.dumps(refused.body).encode()
        lines = [b"%s: %s" % pair for pair in _headers(refused, len(body))]
        head = b"\r\n".join([b"HTTP/1.1 %d %s" % (status, reason), *lines])
        self.transport.write(head + b"\r\n\r\n" + body)
        self.transport.close()
