"""Bodies that are no request get 4xx with a clear message, and hold no slot."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Server

CHAT = "/v1/chat/completions"
VALID = {"model": "mini_teacher", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
PROMPT = {"model": "mini_teacher", "prompt": "Hi", "max_tokens": 2}


def post(
    server: Server, body: bytes, path: str = CHAT, kind: str = "application/json"
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


TEXTS = {
    "nothing": (b"", "no JSON"),
    "no JSON": (b"{", "no JSON"),
    "no UTF-8": (b'{"model": "\xff"}', "no JSON"),
    "deep": (b'{"messages":' + b"[" * 100_000, "nested too deeply"),
    "deep and whole": (b'{"metadata":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "deeply"),
    "NaN": (b'{"temperature": NaN}', "NaN is no number"),
    "infinity": (b'{"temperature": -Infinity}', "-Infinity is no number"),
    "half a character": (b'{"model": "\\ud800"}', "half a character"),
    "half a character as a key": (b'{"\\udfff": 1}', "half a character"),
    "long number": (b'{"seed": ' + b"9" * 5000 + b"}", "4300 digits"),
    "a list": (b"[]", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "a text": (b'"hello"', "must be a JSON object"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_object_is_refused(server: Server, name: str) -> None:
    body, message = TEXTS[name]
    for path in (CHAT, "/v1/completions"):
        status, answer = post(server, body, path)
        assert status == 400
        assert message in answer["error"]["message"]
        assert answer["error"]["type"] == "invalid_request_error"


FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": 3}, "model", "valid string"),
    ({"model": "nosuch"}, "model", "no model 'nosuch'"),
    ({"messages": "Hi"}, "messages", "valid list"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages.0.role", "'system'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", ""),
    ({"messages": [{"role": "user", "content": "<|MASK|>"}]}, "messages", "control token"),
    ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, "messages", "control token"),
    ({"messages": [{"role": "user", "content": "a " * 500}]}, "messages", "at most; shorten"),
    ({"temperature": "1"}, "temperature", "valid number"),
    ({"temperature": -1}, "temperature", "must not be negative"),
    ({"temperature": True}, "temperature", "valid number"),
    ({"top_p": 0}, "top_p", "must lie in (0, 1]"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 1.5}, "n", "valid integer"),
    ({"n": 17}, "n", "16 is the most"),
    ({"n": 10**30}, "n", "less than or equal"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 10**400}, "max_tokens", "less than or equal"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"stop": ["a"] * 5}, "stop", "at most 4"),
    ({"stop": ""}, "stop", "empty string"),
    ({"stop": 3}, "stop", "valid string"),
    ({"stream": "yes"}, "stream", "valid boolean"),
    ({"stream_options": {"denoising": True}}, "stream_options", "with stream alone"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"max_token": 1}, "max_token", "did you mean max_tokens?"),
    ({"tools": [{}]}, "tools", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"denoising_steps": 5}, "denoising_steps", "must be at most block_size=4"),
    ({"denoising_steps": 1025, "remasking": "ancestral"}, "denoising_steps", "at most 1024"),
    ({"block_size": 2**31}, "block_size", "less than or equal"),
    ({"block_size": 2**30}, "block_size", "more than the 256 positions"),
    ({"block_size": 16, "draft_states": 1000}, "draft_states", "states of 16 tokens in one pass"),
    ({"draft_model": "/etc"}, "draft_model", "unknown field"),
    ({"remasking": "nosuch"}, "remasking", "'sequential'"),
    ({"top_k": -1}, "top_k", "must not be negative"),
]


@pytest.mark.parametrize(("change", "param", "message"), FIELDS, ids=str)
def test_a_wrong_field_is_named(
    server: Server, change: dict[str, Any], param: str, message: str
) -> None:
    status, answer = post(server, json.dumps(VALID | change).encode())
    assert status in (400, 404)
    error = answer["error"]
    assert error["param"] is not None
    assert error["param"].startswith(param)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty"),
        ([], "prompt"),
        ([[]], "is empty"),
        ([-1], "vocabulary of 596"),
        ([10**12], "prompt"),
        ([595], "mask token"),
        ("<|MASK|>", "mask token"),
        ([1] * 300, "at most; shorten"),
        (["Hi"] * 17, "16 is the most"),
        ([["Hi"]], "prompt"),
        ([1, "a"], "prompt"),
        ({"text": "Hi"}, "prompt"),
        (None, "prompt"),
    ],
    ids=str,
)
def test_a_wrong_prompt_is_refused(server: Server, prompt: Any, message: str) -> None:
    status, answer = post(
        server, json.dumps(PROMPT | {"prompt": prompt}).encode(), "/v1/completions"
    )
    assert status == 400
    assert message in answer["error"]["message"]


def test_fields_that_ask_for_nothing_are_taken(server: Server) -> None:
    more = {
        "user": "me",
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "metadata": {"a": "b"},
        "temperature": None,
        "stop": None,
        "n": None,
    }
    status, answer = post(server, json.dumps(VALID | more).encode())
    assert status == 200
    assert answer["usage"]["completion_tokens"] <= 2


def test_what_is_sent_as_another_type_or_elsewhere_is_refused(server: Server) -> None:
    body = json.dumps(VALID).encode()
    status, answer = post(server, body, kind="text/plain")
    assert (status, "application/json" in answer["error"]["message"]) == (415, True)
    assert post(server, body, "/v1/nosuch")[0] == 404
    assert post(server, body, "/v1/models")[0] == 405


def test_extreme_numbers_decode(server: Server) -> None:
    texts = [
        post(server, json.dumps(VALID | {"temperature": value}).encode())[1]["choices"][0]["texts"]
        for value in (0.0, 5e-324, 1e-100, 1e-99)
    ]
    assert texts[1:] == texts[:1] * 3
    for change in (
        {"temperature": 1e308},
        {"temperature": 1e-308},
        {"top_p": 1e-300},
        {"top_k": 2**31 - 1},
        {"entropy_bound": 1e308, "remasking": "entropy_bounded"},
        {"seed": -(2**63)},
        {"block_size": 128, "denoising_steps": 2, "max_tokens": 2},
    ):
        status, answer = post(server, json.dumps(VALID | change).encode())
        assert (status, len(answer["choices"])) == (200, 1), change


def test_schemathesis_finds_no_answer_outside_the_schema(server: Server, tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    checks += ",response_schema_conformance"
    command = ["schemathesis", "run", f"{server.url}/openapi.json", "--checks", checks]
    command += ["--max-examples", "12", "--phases", "fuzzing", "--mode", "all", "--seed", "1"]
    command += ["--exclude-path", "/metrics", "--generation-database", "none"]
    script = Path(sys.executable).parent / command[0]
    run = subprocess.run([script, *command[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    tested = re.search(r"(\d+) generated", run.stdout)
    assert tested, run.stdout
    assert int(tested[1]) >= 36
