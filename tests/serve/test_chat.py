"""`t3d chat` through a pipe, on a terminal, and what it gives to the model."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from t3d.core.rng import derive_key
from t3d.decoding.build import make_decoder
from t3d.decoding.config import DYNAMIC, DecodingConfig
from t3d.decoding.request import Request
from t3d.models.loading import LanguageModel
from t3d.serve.chat import Chat, Talker
from t3d.serve.served import Served
from tests.serve.conftest import QUESTION

SHORT = DecodingConfig(max_new_tokens=16)


def talk(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, *lines: str, keeps_history: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    talkers = {
        name: Talker(Served(name, lm, SHORT), keeps_history=keeps_history) for name in ("a", "b")
    }
    Chat(talkers, 3).run()


def answers(lm: LanguageModel, *asked: tuple[list[str], DecodingConfig]) -> list[str]:
    """What the model says to conversations, of which each is one answer later."""
    roles = ("user", "assistant")
    found = []
    for number, (texts, config) in enumerate(asked):
        turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        ids = lm.tokenizer(lm.template(turns), add_special_tokens=False)["input_ids"]
        [own] = make_decoder(lm, config, 1).decode([Request(ids, derive_key(3, number))])
        found.append(lm.decode(own.token_ids))
    return found


def test_what_was_said_before_is_given_again(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(lm, monkeypatch, "One?", "Two?", "/new", "Three?", keeps_history=True)
    said = capsys.readouterr().out.splitlines()
    first = answers(lm, (["One?"], SHORT))[0]
    asked = [["One?"], ["One?", first, "Two?"], ["Three?"]]
    assert said == "\n".join(answers(lm, *((texts, SHORT) for texts in asked))).splitlines()
    talk(lm, monkeypatch, "One?", "Two?", keeps_history=False)
    said = capsys.readouterr().out.splitlines()
    assert said == "\n".join(answers(lm, (["One?"], SHORT), (["Two?"], SHORT))).splitlines()


def test_a_long_conversation_loses_its_beginning(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a b c d e f g h " * 7
    talk(lm, monkeypatch, long, long, long + long, keeps_history=True)
    out, err = capsys.readouterr()
    assert "the beginning of the conversation is left out" in err
    assert "leave no room" in err or len(out.splitlines()) >= 3


def test_commands_change_how_and_who(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/steps 1", "Hi", "/threshold 0.3", "Hi", "/model b", "Hi", "/model", "/quit", "Hi"]
    talk(lm, monkeypatch, *lines, keeps_history=False)
    out, err = capsys.readouterr()
    one = DecodingConfig(max_new_tokens=16, denoising_steps=1)
    dynamic = DecodingConfig(
        max_new_tokens=16, remasking=DYNAMIC, denoising_steps=4, confidence_threshold=0.3
    )
    own = answers(lm, (["Hi"], one), (["Hi"], dynamic), (["Hi"], SHORT))
    assert out.splitlines() == "\n".join(own).splitlines()
    assert len(re.findall(r"\d+ tokens in \d+ passes, [\d.]+ a pass, \d+ a second", err)) == 3
    assert "a, b" in err
    lines = ["/step 2", "/steps 2.5", "/steps 9", "/threshold x", "/threshold 2", "/model c"]
    talk(lm, monkeypatch, *lines, "<|im_end|>", keeps_history=False)
    out, err = capsys.readouterr()
    assert out == ""
    for said in (
        "did you mean /steps?",
        "takes a whole number",
        "denoising_steps must be at most block_size=4",
        "takes a number",
        "confidence_threshold must lie in [0, 1]",
        "no model 'c'",
        "a control token",
    ):
        assert said in err


def test_on_a_terminal_masks_are_seen_being_replaced(lm: LanguageModel) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "t3d", "chat", "mini_teacher"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        until = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < until, seen
            seen += os.read(leader, 65536)

    try:
        wait_for(b"> ")
        os.write(leader, f"{QUESTION}\n".encode())
        wait_for(b"a second")
        os.write(leader, b"/quit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(leader)
    shown = seen.decode(errors="replace")
    frames = shown.count("░░")
    assert frames > 20
    # The last picture has no mask, and every colour of four steps.
    last = shown[shown.rindex("░░") :]
    assert len(set(re.findall(r"48;[25];[\d;]+m", last))) == 4
    words = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|[│\r\n]", "", last)
    [own] = make_decoder(lm, DecodingConfig(max_new_tokens=100), 1).decode(
        [Request(lm.encode_prompt(QUESTION), derive_key(0, 0))]
    )
    assert lm.decode(own.token_ids).replace("\n", "↵") in words
