"""Check an exported folder: reload it by other tools' code, and compare the numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t3d.core.files import read_object
from t3d.interop.checkpoints import probe
from t3d.interop.checkpoints.card import served_engines
from t3d.interop.checkpoints.engines import AGAIN, Consumer, Finding, engine_findings
from t3d.models import LanguageModel, from_pretrained

TOLERANCE = 1e-4
"""Largest difference of logits in float32, as a share of the largest logit."""


def claims(directory: Path) -> frozenset[Consumer]:
    """The consumers of the folder: transformers, t3d and the engines that its card names."""
    always: frozenset[Consumer] = frozenset({"transformers", "t3d"})
    return always | served_engines(directory)


def check(directory: Path) -> list[Finding]:
    """All that would go wrong where this folder is used.

    Loads the model twice, in float32 on the CPU: by transformers alone in a process of its own,
    then by t3d.

    Raises:
        ValueError: if there is no config.json that can be read.
    """
    config = read_object(directory / "config.json", AGAIN)
    try:
        lm = from_pretrained(str(directory), device="cpu")
    except ValueError as error:
        return [Finding("t3d", str(error), AGAIN), *engine_findings(directory, ())]
    problems = [*_code_problems(directory, config), *_tokenizer_problems(directory)]
    size = lm.model.config.block_size
    if size is not None and not problems:
        problems = _compare(directory, lm, size)
    found = [Finding("transformers", problem, AGAIN) for problem in problems]
    if size is None:
        found.append(Finding("t3d", "config.json has no block_size", "add it"))
    return found + engine_findings(directory, lm.stop_token_ids)


def _code_problems(directory: Path, config: dict[str, object]) -> Iterator[str]:
    """Where AutoConfig, AutoModel or AutoModelForCausalLM would not find the code."""
    classes = config.get("auto_map")
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
        target = classes.get(name) if isinstance(classes, dict) else None
        if not isinstance(target, str):
            yield f"{name} has no class in auto_map of config.json"
        elif not (directory / f"{target.partition('.')[0]}.py").is_file():
            yield f"{target.partition('.')[0]}.py is missing, which auto_map names"


def _tokenizer_problems(directory: Path) -> Iterator[str]:
    """Why transformers 4 would not load the tokenizer."""
    settings = read_object(directory / "tokenizer_config.json", AGAIN)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        yield "tokenizer_class TokenizersBackend is unknown to transformers 4"
    if isinstance(settings.get("extra_special_tokens"), list):
        yield "extra_special_tokens as a list is unknown to transformers 4"


def probe_inputs(vocab_size: int, block_size: int) -> Tensor:
    """Fixed random tokens for the comparison, int64 [2, 3 * block_size]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (2, 3 * block_size), generator=generator)


def run_probe(python: str, jobs: Sequence[tuple[Path, Tensor]]) -> list[dict[str, Tensor]]:
    """Run `probe.py` by a Python that has transformers, on pairs of a folder and tokens.

    Raises:
        ValueError: if the script fails, with the last line of its error.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A fresh cache of modules, so that no code of an earlier folder is used instead.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": folder}
        command, outputs = [python, "-I", probe.__file__], []
        for number, (directory, ids) in enumerate(jobs):
            inputs = Path(folder, f"inputs{number}.safetensors")
            outputs.append(Path(folder, f"outputs{number}.safetensors"))
            save_file({"ids": ids}, inputs)
            command += [str(directory.resolve()), str(inputs), str(outputs[-1])]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise ValueError(lines[-1])
        return [load_file(path) for path in outputs]


@torch.no_grad()
def expected(lm: LanguageModel, ids: Tensor, block_size: int) -> dict[str, Tensor]:
    """The outputs that `probe.py` must have, computed by t3d's own model."""
    logits = lm.model(ids).logits
    found = {"logits": logits, "cached": logits[:, -block_size:]}
    found["prompt"] = torch.tensor(lm.encode_prompt(probe.QUESTION))
    return found


def _compare(directory: Path, lm: LanguageModel, block_size: int) -> list[str]:
    """Where logits or prompts of transformers alone differ from t3d's."""
    ids = probe_inputs(lm.model.config.vocab_size, block_size)
    try:
        (found,) = run_probe(sys.executable, [(directory, ids)])
    except ValueError as error:
        return [f"cannot load and run it: {error}"]
    wanted = expected(lm, ids, block_size)
    head = lm.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        found["hidden"] = head(found["hidden"])
    wanted["hidden"] = wanted["logits"]
    names = {
        "logits": "logits of whole sequences",
        "cached": "logits of a block after cached ones",
        "hidden": "hidden states of AutoModel",
    }
    problems = []
    for key, what in names.items():
        error = float((found[key] - wanted[key]).abs().max() / wanted[key].abs().max())
        if not error <= TOLERANCE:
            problems.append(f"{what} differ from t3d's by {error:.1e} of the largest")
    if not torch.equal(found["prompt"], wanted["prompt"]):
        problems.append("the chat template gives other tokens than in t3d")
    return problems
