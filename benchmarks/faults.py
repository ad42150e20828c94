"""Workers of `t3d rollout` killed again and again, in other numbers each time.

No row may be lost or other than an undisturbed run's: `python -m benchmarks.faults`.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from t3d.core.files import write_json
from t3d.core.store import TrajectoryStore
from t3d.models import wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny

SHARD = 4


@dataclass
class Launcher:
    """Starts ranks that decode into a store."""

    model: Path
    store: Path
    num: int

    def start(self, world_size: int) -> list[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "t3d", "rollout", "--model", self.model]
        command += ["--num", str(self.num), "--output", self.store, "--patience", "600"]
        command += ["--shard_size", str(SHARD), "--batch_size", "4", "--decoding.temperature", "1"]
        environment = os.environ | {"WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
        return [
            subprocess.Popen(
                [*command, "--decoding.max_new_tokens", "64"],
                env={**environment, "RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(world_size)
        ]

    def marks(self) -> int:
        """Shards that count."""
        return len(list(self.store.glob("shards/*.json")))


def make_model(path: Path) -> Path:
    examples = get_task("mini_gsm").examples("train", 200)
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    wrap(tiny(vocab_size=len(tokenizer), dtype=torch.float32), tokenizer, "tiny").save(path)
    return path


def finish(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for number, rank in enumerate(ranks):
        if status := rank.wait():
            raise SystemExit(f"rank {number} of {len(ranks)} ended with status {status}")


def disturb(
    launcher: Launcher, draw: random.Random, num_kills: int, spread: float
) -> tuple[list[int], int]:
    """Start ranks and kill them: numbers of ranks by launch, and how many were killed.

    Ends early once all is there.
    """
    launches, killed = [], 0
    while killed < num_kills:
        before, ranks = launcher.marks(), launcher.start(draw.randint(1, 4))
        launches.append(len(ranks))
        # Each launch gets something done, so that there is an end.
        while launcher.marks() == before and any(rank.poll() is None for rank in ranks):
            time.sleep(0.01)
        for rank in draw.sample(ranks, len(ranks)):
            time.sleep(draw.uniform(0, spread / len(ranks)))
            if rank.poll() is None:
                rank.kill()
                killed += 1
            elif rank.returncode:
                raise SystemExit(f"a rank ended with status {rank.returncode}, but was not killed")
        if all(rank.wait() == 0 for rank in ranks):
            break
    return launches, killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--spread", type=float, default=2.0, help="seconds that ranks live longer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the numbers go as JSON")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        undisturbed = Launcher(model, Path(folder) / "undisturbed", options.prompts)
        finish(undisturbed.start(1))
        launcher = Launcher(model, Path(folder) / "disturbed", options.prompts)
        launches, killed = disturb(launcher, draw, options.kills, options.spread)
        before = len(TrajectoryStore.open(launcher.store))
        launches.append(draw.randint(1, 3))
        finish(launcher.start(launches[-1]))
        store, expected = (TrajectoryStore.open(x.store) for x in (launcher, undisturbed))
        same = store.read() == expected.read()
        rows, written = len(store), len(store.shards)
    numbers = {
        "prompts": options.prompts,
        "launches": len(launches),
        "ranks": sum(launches),
        "killed": killed,
        "rows after the last kill": before,
        "rows": rows,
        "lost": options.prompts - rows,
        "written twice": written - rows,
        "as undisturbed": same,
    }
    failed = not same or rows != options.prompts
    table = Table("what", "number", title="faults: FAILED" if failed else "faults: ok")
    for name, number in numbers.items():
        table.add_row(name, f"{number}" if isinstance(number, bool) else f"{number:,}")
    Console(width=100).print(table)
    if options.output is not None:
        write_json(options.output, {**numbers, "ranks by launch": launches})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
