"""A tiny model on disk, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from t3d.cli.main import main
from t3d.models import wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model and a tokenizer of the benchmark."""
    examples = get_task("mini_gsm").examples("train", 200)
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    model = tiny(vocab_size=len(tokenizer), dtype=torch.float32)
    path = tmp_path_factory.mktemp("models") / "tiny"
    wrap(model, tokenizer, "tiny").save(path)
    return path


@pytest.fixture
def t3d(capsys: pytest.CaptureFixture[str]) -> Run:
    """`t3d ARGUMENTS` without a new process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def recipe(checkpoint: Path) -> dict[str, Any]:
    """A whole route of seconds."""
    return {
        "model": str(checkpoint),
        "data": {"num_prompts": 16, "num_problems": 8},
        "rollout": {"decoding": {"max_new_tokens": 16}, "batch_size": 8, "shard_size": 8},
        "methods": {"naive_td": {"method": "naive_td"}, "t3d": {"method": "t3d"}},
        "training": {
            "steps": 6,
            "batch_size": 8,
            "micro_batch_size": 4,
            "learning_rate": 0.01,
            "warmup_steps": 1,
            "save_seconds": 0,
            "logging_steps": 2,
        },
        "evaluation": {
            "settings": [{"denoising_steps": steps, "max_new_tokens": 16} for steps in (4, 1)],
            "batch_size": 8,
            "measure_latency": False,
            "num_shown": 1,
        },
    }


@pytest.fixture
def recipe_file(checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(checkpoint)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen trajectories of the tiny model. Copy it before you damage it."""
    path = tmp_path_factory.mktemp("stores") / "store"
    options = ["--num_prompts", "16", "--shard_size", "8", "--decoding.max_new_tokens", "16"]
    command = ["rollout", "--model", str(checkpoint), "--output", str(path), *options]
    assert main([*command, "--progress", "false"]) == 0
    return path
