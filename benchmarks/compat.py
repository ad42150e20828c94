"""Exported folders in other hands, side by side with t3d: `python -m benchmarks.compat --help`.

Tiny random models of every layout are exported, and run (a) by the authors' modeling file and
generate.py, (b) by the folder's modeling file under other releases of transformers, from 4.52 to
the newest, also under generate.py.
Logits must agree to 1e-5 of the largest, decoded tokens exactly. Writes benchmarks/compat.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from t3d.core.files import write_json
from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Request
from t3d.interop.checkpoints.config import ExportConfig
from t3d.interop.checkpoints.layout import export
from t3d.interop.checkpoints.verify import expected, probe_inputs, run_probe
from t3d.models import LanguageModel, from_pretrained, wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny

TOLERANCE = 1e-5
NEW = 24
# Large enough that rounding decides no argmax, small enough that candidates compete.
SHAPE: dict[str, Any] = {"initializer_range": 0.2, "rope_theta": 1e6}
MODELS: dict[str, dict[str, Any]] = {
    "sdar, untied head": {"tie_word_embeddings": False},
    "sdar, tied head": {"tie_word_embeddings": True},
    "sdar, shards": {"tie_word_embeddings": False, "max_shard_size": "20KB"},
    "sdar, blocks of 8": {"block_size": 8},
    "sdar_moe": {"family": "sdar_moe"},
    "sdar_moe, shards": {"family": "sdar_moe", "max_shard_size": "20KB"},
    "llama": {"family": "llama", "tie_word_embeddings": True},
    "qwen2": {"family": "qwen2"},
}


@dataclass(frozen=True)
class Comparison:
    """One quantity of one model in other hands."""

    model: str
    by: str
    what: str
    difference: float | None
    """Of logits, the largest as a share of the largest logit; None for tokens."""
    same: bool


def write_model(name: str, folder: Path) -> Path:
    """A tiny random model, saved by t3d and exported."""
    settings = {**SHAPE, **MODELS[name]}
    shards = settings.pop("max_shard_size", "5GB")
    problems = get_task("mini_gsm").examples("train", 100)
    tokenizer = train_tokenizer([e.question for e in problems], vocab_size=400)
    settings["vocab_size"] = len(tokenizer)
    model = tiny(dtype=torch.float32, **{"family": "sdar", **settings})
    wrap(model, tokenizer, "memory").save(folder / "saved")
    export(folder / "saved", folder / f"model{folder.name}", ExportConfig(max_shard_size=shards))
    return folder / f"model{folder.name}"


def share(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def by_folder(python: str, by: str, models: dict[str, LanguageModel]) -> Iterator[Comparison]:
    """The folders' modeling files under one Python's transformers."""
    jobs = [(Path(lm.name), sequences(lm)) for lm in models.values()]
    for (name, lm), found in zip(models.items(), run_probe(python, jobs), strict=True):
        wanted = expected(lm, sequences(lm), block_size(lm))
        for what in ("logits", "cached"):
            difference = share(found[what], wanted[what])
            yield Comparison(name, by, what, difference, difference <= TOLERANCE)
        # transformers 5 takes Qwen2's own tokenizer for a Qwen2; this one has another.
        if lm.model.config.model_type != "qwen2":
            same = torch.equal(found["prompt"], wanted["prompt"])
            yield Comparison(name, by, "prompt tokens", None, same)


def by_generate(
    python: str, checkout: Path, models: dict[str, LanguageModel]
) -> Iterator[Comparison]:
    """The authors' generate.py on their modeling file, and on the folders' own."""
    runs = [
        (name, whose)
        for name, lm in models.items()
        for whose in ("authors", "folder")
        # They publish a modeling file for this family alone.
        if whose == "folder" or lm.model.config.model_type == "sdar"
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [python, Path(__file__).parent / "peer_probe.py", checkout]
        for number, (name, whose) in enumerate(runs):
            lm, inputs = models[name], Path(folder, f"inputs{number}.safetensors")
            save_file({"ids": sequences(lm), "prompts": prompts(lm)}, inputs)
            command += [whose, lm.name, inputs, Path(folder, f"outputs{number}.safetensors")]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": folder}
        subprocess.run([str(word) for word in command], env=environment, check=True)
        found = [load_file(Path(folder, f"outputs{n}.safetensors")) for n in range(len(runs))]
    for (name, whose), tensors in zip(runs, found, strict=True):
        lm, files = models[name], {"authors": "the authors' file", "folder": "the folder's file"}
        by = f"generate.py on {files[whose]}"
        wanted = expected(lm, sequences(lm), block_size(lm))["logits"]
        difference = share(tensors["logits"], wanted)
        yield Comparison(name, by, "logits", difference, difference <= TOLERANCE)
        for steps in (1, 2, 4):
            theirs = tensors[f"steps{steps}"][:, prompts(lm).shape[1] :].tolist()
            same = all(ours == theirs for ours in decoded(lm, steps))
            yield Comparison(name, by, f"tokens, {steps} steps a block", None, same)


def decoded(lm: LanguageModel, steps: int) -> tuple[list[list[int]], list[list[int]]]:
    """Responses by the engine and by its oracle."""
    config = DecodingConfig(
        block_size=block_size(lm), denoising_steps=steps, temperature=0, max_new_tokens=NEW
    )
    special: dict[str, Any] = {"mask_token_id": lm.mask_token_id, "stop_token_ids": ()}
    requests = [Request(prompt) for prompt in prompts(lm).tolist()]
    fast = BlockDecoder(lm.model, config, **special, batch_size=2).decode(requests)
    slow = [decode_one(lm.model, request, config, **special) for request in requests]
    return [c.response_ids for c in fast], [c.response_ids for c in slow]


def block_size(lm: LanguageModel) -> int:
    assert lm.model.config.block_size is not None
    return lm.model.config.block_size


def sequences(lm: LanguageModel) -> Tensor:
    return probe_inputs(lm.model.config.vocab_size, block_size(lm))


def prompts(lm: LanguageModel) -> Tensor:
    """Of whole blocks: generate.py overwrites a remainder where less than its quota is masked."""
    return probe_inputs(lm.mask_token_id, block_size(lm))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python",
        nargs="+",
        required=True,
        help="Pythons of environments with other releases; the first, with transformers 4.52.4, "
        "runs the authors' code too",
    )
    parser.add_argument("--sdar", type=Path, required=True, help="checkout of JetAstra/SDAR")
    asked = parser.parse_args()
    pythons = dict.fromkeys([*asked.python, sys.executable], "")
    for python in pythons:
        line = "from importlib.metadata import version as v; "
        line += 'print(f\'transformers {v("transformers")}, torch {v("torch")}\')'
        pythons[python] = subprocess.check_output([python, "-c", line], text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        models = {
            name: from_pretrained(write_model(name, Path(folder, str(number))))
            for number, name in enumerate(MODELS)
        }
        rows = [
            row
            for python, version in pythons.items()
            for row in by_folder(python, version.partition(",")[0], models)
        ]
        rows += by_generate(asked.python[0], asked.sdar, models)
    table = Table("model", "run by", "what", "difference", "same")
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        table.add_row(row.model, row.by, row.what, difference, "yes" if row.same else "NO")
    Console(width=120).print(table)
    document = {"versions": list(pythons.values()), "rows": [asdict(row) for row in rows]}
    write_json(Path(__file__).parent / "compat.json", document)
    return 0 if all(row.same for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
