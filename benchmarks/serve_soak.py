"""Clients of `t3d serve` that come, go away in the middle, and outlive a kill of the server.

No answer may be wrong, mixed up or lost, memory must not grow, and every slot must be free at the
end: `python -m benchmarks.serve_soak`. All traffic stays on this machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

import t3d
from t3d.core.files import write_json
from t3d.core.rng import derive_key
from t3d.decoding.build import make_decoder
from t3d.decoding.request import Request

SETTINGS: list[dict[str, Any]] = [
    {},
    {"denoising_steps": 2},
    {"denoising_steps": 1, "temperature": 0.0},
    {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.7},
    {"block_size": 8, "denoising_steps": 4, "temperature": 0.8},
    {"remasking": "sequential", "draft_states": 4},
]
GROWTH = 0.05
"""Share by which memory may grow after a fifth of a server's life."""
GONE = 0.2
"""Share of the requests whose clients go away."""


@dataclass(frozen=True)
class Case:
    """A request, and the token ids of its choices when it is decoded alone."""

    body: dict[str, Any]
    expected: list[list[int]]


def make_cases(num: int) -> list[Case]:
    """Requests of two tasks in several settings, decoded one by one in this process."""
    lm, draw, cases = t3d.from_pretrained("mini_teacher"), random.Random(0), []
    problems = [
        problem
        for name in ("mini_gsm", "mini_week")
        for problem in t3d.get_task(name).examples("test", num)
    ]
    decoders: dict[int, Any] = {}
    for seed in range(num):
        problem, number = draw.choice(problems), draw.randrange(len(SETTINGS))
        most, choices = draw.randint(8, 96), draw.choice((1, 1, 1, 2))
        config = t3d.DecodingConfig(**SETTINGS[number])
        decoder = decoders.setdefault(number, make_decoder(lm, config, 1))
        prompt = lm.encode_prompt(problem.question)
        expected = [
            decoder.decode([Request(prompt, derive_key(seed, i), most)])[0].token_ids
            for i in range(choices)
        ]
        body = {
            "model": "mini_teacher",
            "messages": [{"role": "user", "content": problem.question}],
            "seed": seed,
            "n": choices,
            "max_tokens": most,
            **SETTINGS[number],
        }
        cases.append(Case(body, expected))
    return cases


class Server:
    """`t3d serve` in a process of its own."""

    def __init__(self, folder: Path, number: int) -> None:
        self.log = folder / f"{number}.jsonl"
        command = [sys.executable, "-m", "t3d", "serve", "mini_teacher", "--port", "0"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        found = re.search(rb"at http://127\.0\.0\.1:(\d+),", self.process.stdout.readline())
        if found is None:
            raise SystemExit(f"the server did not start:\n{self.log.read_text()}")
        self.port = int(found[1])
        self.memory: list[float] = []
        """MiB, one a second."""

    def measure(self) -> None:
        self.memory.append(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    @property
    def growth(self) -> float:
        """Share by which memory grew after the first fifth."""
        fifth = len(self.memory) // 5
        return self.memory[-1] / self.memory[fifth] - 1 if self.memory else 0.0


@dataclass
class Outcome:
    """What became of the requests."""

    right: int = 0
    wrong: list[int] = field(default_factory=list)
    """Seeds of the cases whose answers differ."""
    lost: list[str] = field(default_factory=list)
    """Answers that did not come though the server was there."""
    gone: int = 0
    killed: int = 0
    refused: int = 0
    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    """Seconds from request to whole answer."""
    first: list[float] = field(default_factory=list)
    """Seconds from request to a stream's first text."""


class Soak:
    """Clients that share a server, which may be killed."""

    def __init__(self, cases: list[Case], until: float) -> None:
        self.cases, self.until, self.out = cases, until, Outcome()
        self.lock = threading.Lock()
        self.server: Server | None = None

    def client(self, number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < self.until:
            server, case = self.server, draw.choice(self.cases)
            if server is None:
                time.sleep(0.1)
                continue
            stays, streams = draw.random() >= GONE, draw.random() < 0.5
            try:
                self._ask(server, case, draw, stays=stays, streams=streams)
            except (OSError, http.client.HTTPException, ValueError) as error:
                with self.lock:
                    if server is self.server and server.process.poll() is None:
                        self.out.lost.append(repr(error))
                    else:
                        self.out.killed += 1

    def _ask(
        self, server: Server, case: Case, draw: random.Random, *, stays: bool, streams: bool
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        try:
            started = time.perf_counter()
            body = json.dumps(case.body | {"stream": streams})
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            if not stays:
                assert isinstance(connection.sock, socket.socket)
                connection.sock.settimeout(draw.uniform(0.001, 1.5))
                try:
                    while connection.sock.recv(draw.choice((1, 500, 4000))):
                        pass
                except TimeoutError:
                    pass
                with self.lock:
                    self.out.gone += 1
                return
            answer = connection.getresponse()
            if answer.status == 429:
                with self.lock:
                    self.out.refused += 1
                answer.read()
                time.sleep(float(answer.headers["Retry-After"]))
                return
            if answer.status != 200:
                raise ValueError(f"{answer.status} {answer.read()[:300]!r}")
            first = 0.0
            ids: list[list[int]] = [[] for _ in case.expected]
            if streams:
                ended = False
                for line in answer:
                    first = first or time.perf_counter() - started
                    ended = ended or line == b"data: [DONE]\n"
                    if line.startswith(b"data: {"):
                        for choice in json.loads(line[6:])["choices"]:
                            if choice["finish_reason"]:
                                ids[choice["index"]] = choice["token_ids"]
                if not ended:
                    raise ValueError("a stream ended early")
            else:
                for choice in json.loads(answer.read())["choices"]:
                    ids[choice["index"]] = choice["token_ids"]
            with self.lock:
                self.out.seconds.append(time.perf_counter() - started)
                if streams:
                    self.out.first.append(first)
                self.out.tokens += sum(map(len, ids))
                if ids == case.expected:
                    self.out.right += 1
                else:
                    self.out.wrong.append(case.body["seed"])
        finally:
            connection.close()


def percentiles(values: list[float]) -> str:
    ordered = sorted(values) or [0.0]
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * p))] for p in (0.5, 0.95, 0.99)]
    return " / ".join(f"{value:.2f}" for value in at)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="the kill comes in the middle")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--cases", type=int, default=200, help="distinct requests")
    parser.add_argument("--output", type=Path, help="where the numbers go as JSON")
    options = parser.parse_args()
    cases = make_cases(options.cases)
    with TemporaryDirectory() as folder:
        started = time.monotonic()
        soak = Soak(cases, started + options.seconds)
        servers = [Server(Path(folder), 0)]
        soak.server = servers[0]
        clients = [
            threading.Thread(target=soak.client, args=(number,))
            for number in range(options.clients)
        ]
        for client in clients:
            client.start()
        while time.monotonic() < soak.until:
            time.sleep(1)
            servers[-1].measure()
            if len(servers) == 1 and time.monotonic() > started + options.seconds / 2:
                with soak.lock:
                    soak.server = None
                servers[0].process.send_signal(signal.SIGKILL)
                servers[0].process.wait()
                servers.append(Server(Path(folder), 1))
                soak.server = servers[1]
        for client in clients:
            client.join()
        seconds = time.monotonic() - started
        last, until = servers[-1], time.monotonic() + 30
        while last.metric("t3d_running") + last.metric("t3d_waiting"):
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        held = last.metric("t3d_running") + last.metric("t3d_waiting")
        last.measure()
        last.process.terminate()
        code = last.process.wait(60)
        errors = sum('"status": 5' in server.log.read_text() for server in servers)
        for server in servers:
            assert server.process.stdout is not None
            server.process.stdout.close()
    out = soak.out
    numbers = {
        "seconds": round(seconds),
        "clients": options.clients,
        "right answers": out.right,
        "wrong or mixed up": len(out.wrong),
        "lost": len(out.lost),
        "clients that went away": out.gone,
        "cut by the kill": out.killed,
        "refused (429)": out.refused,
        "servers with an error 5xx": errors,
        "slots held at the end": int(held),
        "exit status after SIGTERM": code,
        "answers/s": round(len(out.seconds) / seconds, 1),
        "tokens/s": round(out.tokens / seconds),
        "seconds an answer, p50 / p95 / p99": percentiles(out.seconds),
        "seconds to a stream's opening, p50 / p95 / p99": percentiles(out.first),
        "memory after a fifth and at the end, MiB": ", ".join(
            f"{server.memory[len(server.memory) // 5]:.0f} to {server.memory[-1]:.0f}"
            for server in servers
        ),
    }
    table = Table("what", "value", box=None)
    for name, value in numbers.items():
        table.add_row(name, str(value))
    Console().print(table)
    for told in (*out.lost[:5], *out.wrong[:5]):
        print(told)
    if options.output is not None:
        write_json(options.output, numbers)
    is_flat = max(server.growth for server in servers) < GROWTH
    return int(bool(out.wrong or out.lost or held or code or errors or not is_flat))


if __name__ == "__main__":
    sys.exit(main())
