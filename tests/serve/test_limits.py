"""What a server refuses, how it ends, and clients that are slow or go away."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import t3d.serve
from t3d.cli.main import main
from tests.serve.conftest import ENDLESS, Server
from tests.serve.test_malformed import CHAT, VALID, post

KEY = "a key"
LONG = json.dumps(VALID | ENDLESS | {"max_tokens": 200}).encode()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes little."""
    options = ["--batch_size", "1", "--max_queue", "1", "--max_choices", "2", "--max_tokens", "100"]
    options += ["--max_prompt_tokens", "50", "--max_body_bytes", "5000", "--read_seconds", "0.7"]
    options += ["--grace_seconds", "1"]
    server = Server(tmp_path_factory.mktemp("small"), "mini_teacher", *options)
    yield server
    server.wait_for("t3d_running", 0)
    # A stop ends what takes longer than its grace.
    with open_answer(server) as connection:
        server.wait_for("t3d_running", 1)
        started = time.monotonic()
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - started < 20
        assert b" 503 " in connection.recv(65536)
    records = server.records()
    assert all(record.get("status") != 500 for record in records)
    [told] = [record["error"] for record in records if "error" in record]
    assert "graceful shutdown exceeded" in str(told)


def raw(server: Server, *parts: bytes, pause: float = 0.0) -> bytes:
    """Everything that the server says to these bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


def head(length: int, *more: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def open_answer(server: Server, body: bytes = LONG) -> socket.socket:
    """A connection on which an answer is decoded."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=15)
    connection.sendall(head(len(body)) + body)
    return connection


def test_bodies_beyond_the_limit_are_refused(small: Server) -> None:
    body = json.dumps(VALID | {"user": "a" * 5000}).encode()
    status, answer = post(small, body)
    assert (status, "larger than 5000 bytes" in answer["error"]["message"]) == (413, True)
    assert b" 413 " in raw(small, head(10**14))
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    start = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    assert b" 413 " in raw(small, start, chunk * 20)


def test_slow_headers_and_bodies_are_given_up(small: Server) -> None:
    for parts in (
        [b"POST / HTTP/1.1\r\nHost:"],
        [b"P"],
        [b"GET /health HTTP/1.1\r\n"] + [b"A: b\r\n"] * 20,
        [head(100), b"{"],
        [head(100)],
        [head(100), *[b" "] * 40],
        [head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"), b"5\r\n{"],
    ):
        started = time.monotonic()
        try:
            answer = raw(small, *parts, pause=0.1)
        # The server has closed the connection while more was sent.
        except (ConnectionResetError, BrokenPipeError):
            answer = b" 408 "
        assert b" 408 " in answer
        assert time.monotonic() - started < 4
    assert small.metric("t3d_running") == 0


def test_half_sent_bodies_and_broken_lines_leave_nothing(small: Server) -> None:
    for parts in ([head(100), b'{"model'], [head(10)], [b"GET / HT"]):
        with socket.create_connection(("127.0.0.1", small.port)) as connection:
            for part in parts:
                connection.sendall(part)
    assert b" 400 " in raw(small, b"nonsense\r\n\r\n")
    assert b'"error"' in raw(small, b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n")
    assert b" 400 " in raw(small, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")
    assert post(small, json.dumps(VALID).encode())[0] == 200


def test_prompt_and_choices_have_limits(small: Server) -> None:
    status, answer = post(small, json.dumps(VALID | {"n": 3}).encode())
    assert (status, "2 is the most" in answer["error"]["message"]) == (400, True)
    turns = [{"role": "user", "content": "a b c d e f g h " * 8}]
    status, answer = post(small, json.dumps(VALID | {"messages": turns}).encode())
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "takes 50 at most" in answer["error"]["message"]
    status, answer = post(small, json.dumps(VALID | {"max_tokens": 200}).encode())
    assert (status, answer["choices"][0]["layout"]["max_tokens"]) == (200, 100)


def test_a_full_queue_says_when_to_come_back_and_empties(small: Server) -> None:
    streamed = json.dumps(json.loads(LONG) | {"stream": True}).encode()
    with open_answer(small), open_answer(small, streamed):
        small.wait_for("t3d_running", 1)
        small.wait_for("t3d_waiting", 1)
        connection = http.client.HTTPConnection("127.0.0.1", small.port)
        body = json.dumps(VALID).encode()
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert json.loads(answer.read())["error"]["code"] == "queue_full"
        connection.close()
    # Both clients went away.
    small.wait_for("t3d_running", 0)
    small.wait_for("t3d_waiting", 0)
    assert small.metric("t3d_disconnects_total") >= 2
    assert post(small, body)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slots(server: Server, stream: bool) -> None:
    body = json.dumps(json.loads(LONG) | {"n": 8, "stream": stream}).encode()
    with ExitStack() as clients:
        for _ in range(5):
            clients.enter_context(open_answer(server, body))
        server.wait_for("t3d_running", 32)
        server.wait_for("t3d_waiting", 8)
    server.wait_for("t3d_running", 0)
    assert post(server, json.dumps(VALID).encode())[0] == 200


def test_clients_that_read_nothing_hold_no_slot(server: Server) -> None:
    # Some seconds of work, so that a look at the metrics does not miss it.
    asked: dict[str, Any] = {"n": 16, "max_tokens": 200, "remasking": "ancestral"}
    asked |= {"denoising_steps": 40, "stream": True, "stream_options": {"denoising": True}}
    with open_answer(server, json.dumps(VALID | asked).encode()):
        server.wait_for("t3d_running", 16)
        server.wait_for("t3d_running", 0)


def test_requests_on_one_connection(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for _ in range(3):
        body = json.dumps(VALID).encode()
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
        connection.request("GET", "/v1/models/again")
        assert json.loads(connection.getresponse().read())["id"] == "again"
    connection.close()


def test_a_key_is_asked_for_and_a_stop_finishes_what_runs(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = Server(tmp_path, "mini_teacher", "--grace_seconds", "60", key=KEY)
    request.addfinalizer(lambda: server.stop(signal.SIGKILL))
    path, body = "/v1/completions", {"model": "mini_teacher", "prompt": "Hi", "max_tokens": 200}
    asked: dict[str, Any] = {"remasking": "ancestral", "denoising_steps": 40, "seed": 1}

    def call(key: str | None, **more: Any) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"}
        headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", path, json.dumps(body | more).encode(), headers)
        answer = connection.getresponse()
        try:
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    for wrong in (None, "", "another", KEY + "x", KEY[:-1]):
        status, answer = call(wrong)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert b" 401 " in raw(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " in raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    before = call(KEY, **asked)
    assert before[0] == 200
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(call, KEY, **asked) for _ in range(3)]
        server.wait_for("t3d_running", 3)
        server.process.send_signal(signal.SIGTERM)
        for one in running:
            status, answer = one.result(60)
            assert (status, answer["choices"]) == (200, before[1]["choices"])
    assert server.stop() == 0
    assert KEY not in server.log.read_text()
    with pytest.raises(ConnectionRefusedError):
        call(KEY)


def test_what_cannot_be_served_is_one_sentence(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*arguments: str) -> str:
        assert main(["serve", *arguments]) in (1, 2)
        return capsys.readouterr().err

    assert "cannot be listened to" in error("mini_teacher", "--port", str(server.port))
    assert "served as 'a' already" in error("a=mini_teacher", "a=mini_teacher", "--port", "0")
    assert "give a checkpoint as PATH or NAME=PATH" in error("=mini_teacher", "--port", "0")
    assert "did you mean mini_teacher?" in error("mini_teachr", "--port", "0")
    assert "always be refused; lower it" in error("mini_teacher", "--max_choices", "900")
    assert "read_seconds must be positive" in error("mini_teacher", "--read_seconds", "0")
    for name in [name for name in sys.modules if name.startswith("t3d.serve.")]:
        if name != "t3d.serve.config":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(t3d.serve, "server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "serving needs uvicorn; install the extra: pip install 't3d[serve]'" in error("x")
