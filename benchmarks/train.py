"""Our training step beside the authors': `python -m benchmarks.train --help`.

The same random SDAR weights and trajectories, T3D at its published settings, each implementation
in a process of its own. The authors' code pads every sequence to the longest prompt and response
of the data set: once those of these trajectories, once the caps that one long response of a real
data set reaches. Writes benchmarks/train.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from t3d.bench.roofline import peak_bytes
from t3d.bench.train import PROMPT, RESPONSE, Clock, random_trajectories
from t3d.core.files import write_json
from t3d.core.trajectory import Trajectory, training_rows
from t3d.models import from_pretrained, wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.methods import build_method
from t3d.training.run import fit

VOCABULARY = 151_936
CAP = (512, 1024)
"""The authors' caps of prompt and response."""
BLOCK = 8


def make_job(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """A model and trajectories on disk, and what both implementations need to know of them."""
    problems = get_task("mini_gsm").examples("train", 100)
    tokenizer = train_tokenizer([e.question for e in problems], vocab_size=400)
    model = tiny(
        vocab_size=VOCABULARY,
        dtype=torch.float32,
        initializer_range=0.02,
        hidden_size=asked.hidden,
        intermediate_size=3 * asked.hidden,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.hidden // 32,
        num_key_value_heads=asked.hidden // 64,
        head_dim=32,
        max_position_embeddings=2 * sum(CAP),
        tie_word_embeddings=False,
    )
    model.config.mask_token_id = None
    lm = wrap(model, tokenizer, "random")
    lm.save(folder / "model")
    trajectories = random_trajectories(asked.trajectories, range(3, 256), lm.mask_token_id)
    return {
        "model": str(folder / "model"),
        "device": asked.device,
        "repeats": asked.repeats,
        "micro_batch_size": asked.micro_batch_size,
        "mask_token_id": lm.mask_token_id,
        "pad_token_id": lm.pad_token_id,
        "cap": CAP,
        "trajectories": [asdict(trajectory) for trajectory in trajectories],
    }


def run_ours(job: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own."""
    lm = from_pretrained(job["model"], block_size=BLOCK)
    trajectories = [Trajectory(**item) for item in job["trajectories"]]
    config = TrainingConfig(
        steps=1 + job["repeats"],
        batch_size=len(trajectories),
        micro_batch_size=job["micro_batch_size"],
        block_sizes=[BLOCK],
        dtype="auto",
        logging_steps=1,
        trainer={"use_cpu": True} if job["device"] == "cpu" else {},
    )
    clock, method = Clock(), build_method(MethodConfig("t3d"))
    with tempfile.TemporaryDirectory() as folder:
        rows = training_rows(trajectories)
        trainer = fit(lm, method, rows, config, Path(folder), callbacks=[clock], progress=False)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "seconds": clock.seconds,
        "peak_memory_bytes": peak_bytes(torch.device(job["device"])),
        "losses": losses,
    }


def measure(command: list[str], job: dict[str, Any], path: Path) -> dict[str, Any]:
    write_json(path, job)
    lines = subprocess.check_output([*command, str(path)], text=True).splitlines()
    return json.loads(lines[-1])


def row_of(name: str, job: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    # The first step is for warming up.
    seconds = statistics.median(found["seconds"][1:])
    return {
        "implementation": name,
        "device": job["device"],
        "padded_to": job.get("longest"),
        "trajectories_per_second": len(job["trajectories"]) / seconds,
        "peak_memory_bytes": found["peak_memory_bytes"],
        "losses": found["losses"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--authors", type=Path, help="checkout of Tyrion58/T3D")
    parser.add_argument("--python", help="with transformers 4.52.4, for the authors' code")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--trajectories", type=int, default=8, help="an optimizer step")
    parser.add_argument("--micro-batch-size", type=int, default=2, help="of ours; theirs is 1")
    parser.add_argument("--repeats", type=int, default=2, help="measured optimizer steps")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.ours is not None:
        print(json.dumps(run_ours(json.loads(asked.ours.read_text()))))
        return 0
    if asked.authors is None or asked.python is None:
        parser.error("--authors and --python are needed")
    ours = [sys.executable, "-m", "benchmarks.train", "--ours"]
    file = Path(__file__).with_name("peer_train.py")
    theirs = [asked.python, str(file), str(asked.authors)]
    with tempfile.TemporaryDirectory() as folder:
        job, path = make_job(Path(folder), asked), Path(folder, "job.json")
        rows = [row_of("t3d", job, measure(ours, job, path))]
        for longest in ((PROMPT[1], RESPONSE[1]), CAP):
            padded = {**job, "longest": longest}
            rows.append(row_of("authors", padded, measure(theirs, padded, path)))
    model = f"SDAR, hidden {asked.hidden}, {asked.layers} layers, vocabulary {VOCABULARY}"
    rate, memory = rows[0]["trajectories_per_second"], rows[0]["peak_memory_bytes"]
    table = Table("implementation", "padded to", "trajectories/s", "peak GB", "ours: speed, memory")
    for row in rows:
        row["model"] = model
        row["ratio_to_ours"] = {
            "trajectories_per_second": row["trajectories_per_second"] / rate,
            "peak_memory_bytes": row["peak_memory_bytes"] / memory,
        }
        table.add_row(
            row["implementation"],
            str(row["padded_to"] or "nothing"),
            f"{row['trajectories_per_second']:.3f}",
            f"{row['peak_memory_bytes'] / 1e9:.2f}",
            f"{rate / row['trajectories_per_second']:.1f} x, "
            f"{memory / row['peak_memory_bytes']:.2f} x",
        )
    Console(width=120).print(table)
    write_json(Path(__file__).with_name("train.json"), {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
