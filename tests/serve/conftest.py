"""Servers in processes of their own, as users start them, and what they are compared with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import t3d
from t3d.core.rng import derive_key
from t3d.decoding.build import make_decoder
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Completion, Request
from t3d.models.loading import LanguageModel

QUESTION = t3d.get_task("mini_gsm").examples("test", 1)[0].question
ENDLESS = {"remasking": "ancestral", "denoising_steps": 1024}
"""A setting that takes minutes."""


class Server:
    """`t3d serve` with a log that can be read."""

    def __init__(self, folder: Path, *arguments: str, key: str = "") -> None:
        self.log, self._key = folder / "log.jsonl", key
        command = [sys.executable, "-m", "t3d", "serve", *arguments, "--port", "0"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=os.environ | {"T3D_API_KEY": key}
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.search(r"at (http://127\.0\.0\.1:(\d+)),", line)
        assert found, line + self.log.read_text()
        self.url, self.port = found[1], int(found[2])

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        asked = urllib.request.Request(f"{self.url}/metrics")
        asked.add_header("Authorization", f"Bearer {self._key}")
        with urllib.request.urlopen(asked) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        until = time.monotonic() + 20
        while (found := self.metric(name)) != value:
            assert time.monotonic() < until, f"{name} is {found}"
            time.sleep(0.02)

    def records(self) -> list[dict[str, object]]:
        """The lines of the log; a line that is no JSON is a traceback."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The model that ships, twice."""
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, "mini_teacher", "again=mini_teacher")
    yield server
    assert server.metric("t3d_running") == server.metric("t3d_waiting") == 0
    assert server.stop() == 0
    assert all(record.get("status", 500) != 500 for record in server.records())


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    return t3d.from_pretrained("mini_teacher")


def expected(
    lm: LanguageModel,
    question: str = QUESTION,
    seed: int = 0,
    num: int = 1,
    **setting: object,
) -> list[Completion]:
    """What `t3d generate` decodes for a question; the i-th of `num` with the seed's i-th key."""
    prompt = lm.encode_prompt(question)
    room = lm.model.config.max_position_embeddings - len(prompt)
    config = DecodingConfig(**({"max_new_tokens": room} | setting))  # type: ignore[arg-type]
    requests = [Request(prompt, derive_key(seed, index)) for index in range(num)]
    # One after another: the server's batches are others, and must not matter.
    decoder = make_decoder(lm, config, 1)
    return [decoder.decode([request])[0] for request in requests]
