"""The model card: only what is known of a checkpoint, without boilerplate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from t3d.core.files import read_object
from t3d.evaluation.results import ResultRow, load_results
from t3d.interop.checkpoints.config import ExportConfig
from t3d.interop.checkpoints.engines import Consumer, engine_findings
from t3d.training.methods import METHODS

ENGINES: tuple[Consumer, ...] = ("sglang", "lmdeploy")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def served_engines(directory: Path) -> frozenset[Consumer]:
    """The engines that the card's tags name; none without a card.

    Raises:
        ValueError: if the card's metadata cannot be read.
    """
    path = directory / "README.md"
    if not path.exists():
        return frozenset()
    try:
        tags = ModelCard(path.read_text(encoding="utf-8")).data.to_dict().get("tags")
    except Exception as error:
        raise ValueError(f"{path}: its metadata is no YAML ({error}); correct it") from None
    return frozenset(engine for engine in ENGINES if engine in (tags or ()))


def write_card(directory: Path, asked: ExportConfig, *, title: str, source: str) -> None:
    """Write README.md of a folder that holds everything else.

    Args:
        source: the model that is exported; only results of its own are shown.

    Raises:
        ValueError: if the results cannot be read, or are all of other models.
    """
    config = read_object(directory / "config.json")
    stops = tuple(read_object(directory / "generation_config.json")["eos_token_id"])
    path = directory / "provenance.json"
    record = read_object(path) if path.exists() else {}
    rows = [] if asked.results is None else _own_rows(asked.results, source)
    failing = {finding.consumer for finding in engine_findings(directory, stops) if finding.fatal}
    served: list[Consumer] = [engine for engine in ENGINES if engine not in failing]
    base = str(record.get("model", ""))
    data = ModelCardData(
        license=asked.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["block-diffusion", "t3d", *served],
        base_model=base if _HUB_NAME.fullmatch(base) and not Path(base).exists() else None,
    )
    parts = [
        f"# {title}",
        _what(config),
        _how_made(record, base),
        _use(config, served),
        _results(rows),
    ]
    text = "\n\n".join(part for part in parts if part)
    (directory / "README.md").write_text(
        f"---\n{data.to_yaml()}\n---\n\n{text}\n", encoding="utf-8"
    )


def _own_rows(results: Path, source: str) -> list[ResultRow]:
    path = Path(source).resolve()
    rows = [
        row
        for row in load_results(results)
        if row.model == source or Path(row.model).resolve() == path
    ]
    if not rows:
        raise ValueError(f"{results}: holds no row of {source}; evaluate it with `t3d eval`")
    return rows


def _what(config: dict[str, Any]) -> str:
    return (
        f"A block-diffusion language model (`{config['model_type']}`): it fills in blocks of "
        f"{config['block_size']} tokens, several tokens a pass. Its mask token is "
        f"{config['mask_token_id']}; logits are not shifted."
    )


def _how_made(record: dict[str, Any], base: str) -> str:
    """How the checkpoint was made, by its provenance.json; empty where there is none."""
    asked = record.get("config", {})
    method = asked.get("method")
    name = method.get("method") if isinstance(method, dict) else None
    papers = METHODS[name].papers if isinstance(name, str) and name in METHODS else ()
    facts = {
        "method": name,
        "papers": ", ".join(map(_link, papers)) or None,
        "starts from": f"`{base}`" if base and base != "new" else None,
        "task": asked.get("task"),
        "optimizer steps": record.get("optimizer_steps"),
        "tokens seen": record.get("tokens_seen"),
        "rounds": record.get("rounds"),
        "seed": record.get("seed"),
        "t3d": record.get("packages", {}).get("t3d"),
    }
    lines = [f"- {key}: {value}" for key, value in facts.items() if value is not None]
    return "\n".join(["## How it was made", "", *lines]) if record else ""


def _link(paper: str) -> str:
    """A paper such as `T3D, arXiv:2602.12262` as a link to it."""
    name, _, number = paper.partition(", arXiv:")
    return f"[{name}, arXiv:{number}](https://arxiv.org/abs/{number})"


def _use(config: dict[str, Any], served: list[Consumer]) -> str:
    block = config["block_size"]
    lines = [
        "## How to use it",
        "",
        "In transformers 4.51 or later, 5 included, with the code in this folder:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        'model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)',
        "logits = model(input_ids).logits  # block mask by default; token i at position i",
        "```",
        "",
        "Decode it with `t3d generate --model PATH 'QUESTION'`, or with `generate.py` of "
        f"github.com/JetAstra/SDAR and `--block_length {block}`.",
    ]
    if "sglang" in served:
        lines += ["", "SGLang serves it with `--dllm-algorithm LowConfidence --trust-remote-code`."]
    if "lmdeploy" in served:
        lines += ["", f"LMDeploy serves it with `--dllm-block-length {block}`."]
    if len(served) < len(ENGINES):
        lines += ["", "Why other engines do not serve it: `t3d export --check PATH`."]
    return "\n".join(lines)


def _results(rows: list[ResultRow]) -> str:
    if not rows:
        return ""
    lines = [
        "## Results",
        "",
        "Accuracy over n problems with its 95 % Wilson interval; passes are denoising passes.",
        "",
        "| task | model | decoding | block | steps | accuracy | 95 % | n | tokens a pass |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row.ci95
        d = row.decoding
        lines.append(
            f"| {row.task} | {row.method} | {d.remasking} | {d.block_size} "
            f"| {d.denoising_steps} | {row.accuracy:.1%} | {low:.1%} to {high:.1%} | {row.n} "
            f"| {row.tokens_per_forward:.2f} |"
        )
    return "\n".join(lines)
