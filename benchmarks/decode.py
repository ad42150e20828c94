"""Our decoder beside those of others, in one run: `python -m benchmarks.decode --help`.

The same random SDAR weights (exported, so that the others load them) and prompts, greedy, without
stop tokens; prompts and responses are whole blocks, since generate.py of SDAR overwrites what a
prompt has of a block. Each implementation has a process of its own, they take turns, and the
median counts. Those that take one request at a time are measured so at every batch size, by the
same numbers. Writes benchmarks/decode.json; fails where SDAR's greedy tokens are not ours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.peer_decode import serve
from t3d.bench.config import DecodeSettings, Engine, Shape
from t3d.bench.decode import Run, make_engine, passes_per_block
from t3d.bench.subject import ordinary_ids, random_model
from t3d.bench.tables import head as file_head
from t3d.core.files import write_json
from t3d.decoding.request import Request
from t3d.interop.checkpoints.layout import export
from t3d.models import LanguageModel, from_pretrained

BLOCK = 4
PROMPT = (32, 64)
"""Tokens at least and at most."""
ONE = "one request at a time"
HOW = {
    "t3d": "continuous batches",
    "t3d_verified": "continuous batches",
    "oracle": ONE,
    "sdar": ONE,
    "sdar_exported": ONE,
    "dllm": "left-padded batches",
    "jetengine": "continuous batches",
    "autoregressive": "left-padded batches",
}
"""How each takes its requests."""


Setting = tuple[int, int, int]
"""Batch size, denoising steps, new tokens of a request."""


@dataclass
class Worker:
    """An implementation in a process of its own, and what it did by setting."""

    name: str
    process: subprocess.Popen[str]
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[Setting, list[float]] = field(default_factory=dict)
    answers: dict[Setting, dict[str, Any]] = field(default_factory=dict)
    """The last one."""

    @classmethod
    def start(cls, name: str, command: Sequence[object], modules: str) -> Worker:
        """`modules` is where transformers may put the folder's modeling file."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules}
        words = [str(word) for word in command]
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)
        return cls(name, process)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}, see above")
        return json.loads(line)

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def setting(self, batch_size: int, steps: int, asked: argparse.Namespace) -> Setting:
        """What a setting comes down to."""
        new_tokens = asked.new_tokens if batch_size > 1 else asked.new_tokens_alone
        return (1 if HOW[self.name] == ONE else batch_size), steps, new_tokens


def make_model(folder: Path, shape: Shape) -> LanguageModel:
    """A random model, exported into `folder`/model."""
    lm = random_model(shape, torch.device("cpu"), "float32")
    head = lm.model.get_output_embeddings()
    assert head is not None
    with torch.no_grad():
        # Logits of 0 are never the largest: others may draw these two.
        head.weight[[lm.mask_token_id, lm.pad_token_id]] = 0
    lm.model.config.pad_token_id = lm.pad_token_id
    lm.save(folder / "saved")
    export(folder / "saved", folder / "model")
    return lm


def make_prompts(lm: LanguageModel, num: int) -> list[list[int]]:
    """Random tokens, whole blocks of them; without padding, which others know by its id."""
    draw = random.Random(0)
    tokens = [token for token in ordinary_ids(lm) if token != lm.pad_token_id]
    first, last = (length // BLOCK for length in PROMPT)
    return [draw.choices(tokens, k=BLOCK * draw.randint(first, last)) for _ in range(num)]


def serve_ours(engine: Engine, directory: str, device: str) -> None:
    """In a process of its own."""
    out, sys.stdout = sys.stdout, sys.stderr
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    lm = from_pretrained(directory, device=device, dtype=dtype)

    @cache
    def decoder(block_size: int, new_tokens: int, steps: int, batch_size: int) -> Run:
        settings = DecodeSettings(block_size=block_size, new_tokens=new_tokens)
        return make_engine(lm, engine, settings.decoding(steps), batch_size)

    def run(job: dict[str, Any]) -> tuple[list[list[int]], float]:
        sizes = ("block_size", "new_tokens", "denoising_steps", "batch_size")
        requests = [Request(prompt) for prompt in job["prompts"]]
        done = decoder(*(job[size] for size in sizes))(requests)
        blocks = passes_per_block(requests, done, job["block_size"])
        return [completion.token_ids for completion in done], blocks

    serve(run, device, out)


def start(
    stack: ExitStack, asked: argparse.Namespace, folder: Path
) -> tuple[list[Worker], list[dict[str, str]]]:
    """Every implementation that was asked for, and why some do not run."""
    model = folder / "model"
    ours = [sys.executable, "-m", "benchmarks.decode", "--serve"]
    commands: dict[str, list[object]] = {
        name: [*ours, name, model, asked.device] for name in asked.engines
    }
    peers = [
        ("sdar", asked.python, asked.sdar),
        ("sdar_exported", asked.python, asked.sdar),
        ("dllm", asked.dllm_python, asked.dllm),
        ("jetengine", sys.executable, asked.jetengine),
        ("autoregressive", sys.executable, Path()),
    ]
    for name, python, checkout in peers:
        if checkout is not None:
            module = [python, "-m", "benchmarks.peer_decode", name]
            commands[name] = [*module, checkout.absolute(), model, asked.device]
    workers: list[Worker] = []
    not_run: list[dict[str, str]] = []
    for name, command in commands.items():
        worker = stack.enter_context(Worker.start(name, command, str(folder / name)))
        answer = worker.answer()
        if "reason" in answer:
            not_run.append({"engine": name, "reason": answer["reason"]})
        else:
            worker.versions = answer["ready"]
            workers.append(worker)
    return workers, not_run


def measure(workers: Sequence[Worker], prompts: list[list[int]], asked: argparse.Namespace) -> None:
    """Let the workers take turns in every setting, each as long as `asked` allows."""
    job: dict[str, Any] = {"block_size": BLOCK}
    for worker in workers:
        warm = {"batch_size": 1, "denoising_steps": 1, "new_tokens": asked.new_tokens}
        worker.ask(job | warm | {"prompts": prompts[:1]})
    for batch_size in asked.batch_sizes:
        for steps in asked.denoising_steps:
            for _ in range(asked.repeats):
                for worker in workers:
                    setting = worker.setting(batch_size, steps, asked)
                    seconds = worker.seconds.setdefault(setting, [])
                    if len(seconds) == asked.repeats or sum(seconds) > asked.enough:
                        continue
                    num = max(setting[0], asked.requests)
                    names = ("batch_size", "denoising_steps", "new_tokens")
                    sizes = dict(zip(names, setting, strict=True))
                    answer = worker.ask(job | sizes | {"prompts": prompts[:num]})
                    worker.answers[setting] = answer
                    seconds.append(answer["seconds"])
            print(f"batch size {batch_size}, {steps} steps: done", file=sys.stderr)


def rows_of(
    workers: Sequence[Worker], model: str, asked: argparse.Namespace
) -> list[dict[str, Any]]:
    rows = []
    for batch_size in asked.batch_sizes:
        for steps in asked.denoising_steps:
            rate, ours = 0.0, []
            for worker in workers:
                setting = worker.setting(batch_size, steps, asked)
                answer, seconds = worker.answers[setting], worker.seconds[setting]
                tokens = answer["tokens"]
                per_second = sum(map(len, tokens)) / statistics.median(seconds)
                if worker.name == "t3d":
                    rate, ours = per_second, tokens
                rows.append(
                    {
                        "engine": worker.name,
                        "device": asked.device,
                        "model": model,
                        "batch_size": batch_size,
                        "denoising_steps": steps,
                        "block_size": BLOCK,
                        "new_tokens": setting[2],
                        "requests": HOW[worker.name],
                        "num_requests": len(tokens),
                        "repeats": len(seconds),
                        "tokens_per_second": per_second,
                        "passes_per_block": answer["passes_per_block"],
                        "ratio_to_ours": per_second / rate,
                        # Of a request nothing depends on the others.
                        "same_tokens": sum(a == b for a, b in zip(tokens, ours, strict=False)),
                    }
                )
    return rows


def show(rows: Sequence[dict[str, Any]], not_run: Sequence[dict[str, str]]) -> Table:
    names = ("batch", "steps", "tokens/s", "passes/block", "of t3d (x)", "tokens as ours")
    lines = [f"{item['engine']} does not run here: {item['reason']}" for item in not_run]
    table = Table("engine", "takes", *names, caption="\n".join(lines), caption_justify="left")
    for row in rows:
        passes = row["passes_per_block"]
        table.add_row(
            row["engine"],
            row["requests"],
            str(row["batch_size"]),
            str(row["denoising_steps"]),
            f"{row['tokens_per_second']:,.1f}",
            "unknown" if passes is None else f"{passes:.2f}",
            f"{row['ratio_to_ours']:.2f}",
            f"{row['same_tokens']} of {row['num_requests']}",
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdar", type=Path, help="checkout of JetAstra/SDAR")
    parser.add_argument("--python", help="with transformers 4.52.4, for --sdar")
    parser.add_argument("--dllm", type=Path, help="checkout of ZHZisZZ/dllm")
    parser.add_argument(
        "--dllm-python", default=sys.executable, help="with transformers 4.57, for --dllm"
    )
    parser.add_argument("--jetengine", type=Path, help="checkout of Tyrion58/T3D")
    parser.add_argument(
        "--engines", nargs="+", default=list(get_args(Engine)), choices=get_args(Engine)
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="sdar-100m", help="a preset of t3d bench, or JSON")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--denoising-steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--new-tokens", type=int, default=32, help=f"a multiple of {BLOCK}")
    parser.add_argument(
        "--new-tokens-alone", type=int, default=128, help="the same at batch size 1"
    )
    parser.add_argument("--requests", type=int, default=4, help="that are timed, or a whole batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--enough", type=float, default=10, help="seconds after which a setting is not repeated"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("decode.json"))
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.sdar is not None and asked.python is None:
        parser.error("--sdar needs --python")
    if "t3d" not in asked.engines:
        parser.error("--engines must name t3d, which the others are compared with")
    # Rows are compared with the one before them.
    asked.engines.sort(key=get_args(Engine).index)
    if asked.shape.startswith("{"):
        asked.shape = json.loads(asked.shape)
    return asked


def main() -> int:
    asked = parse()
    if asked.serve is not None:
        serve_ours(*asked.serve)
        return 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        lm = make_model(Path(folder), asked.shape)
        prompts = make_prompts(lm, max(*asked.batch_sizes, asked.requests))
        workers, not_run = start(stack, asked, Path(folder))
        measure(workers, prompts, asked)
    rows = rows_of(workers, lm.name, asked)
    Console(width=120).print(show(rows, not_run))
    ran = {worker.name: worker.versions for worker in workers}
    write_json(asked.output, {**file_head(), "ran": ran, "not_run": not_run, "rows": rows})
    same = [row["same_tokens"] == row["num_requests"] for row in rows if "sdar" in row["engine"]]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
