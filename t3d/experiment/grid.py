"""Evaluate a checkpoint under a grid of decoding settings; finished ones are kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

from t3d.core.dtypes import Dtype
from t3d.core.files import claim, read_object
from t3d.core.progress import bar, display, hear, stage
from t3d.core.provenance import COSTS, provenance
from t3d.core.ranges import check_number
from t3d.core.shards import Shards
from t3d.core.workers import check_workers, launched, pool
from t3d.decoding.build import load_draft_model
from t3d.decoding.config import DecodingConfig, labels, one_line
from t3d.evaluation.config import EvaluationConfig, GridConfig
from t3d.evaluation.evaluate import (
    Evaluation,
    Identity,
    decode_problems,
    decoded_shards,
    evaluate,
    is_finished,
    requests_of,
)
from t3d.evaluation.results import ORIGINAL, save_results
from t3d.evaluation.samples import write_samples
from t3d.models import LanguageModel, from_pretrained
from t3d.tasks import Example, Split, Task


def check_evaluation(
    lm: LanguageModel, problems: Sequence[Example], config: EvaluationConfig
) -> int:
    """Check an evaluation in advance, and count prompts that leave no room for max_new_tokens.

    Raises:
        ValueError: for errors that would otherwise appear only when evaluation starts.
    """
    if not problems:
        raise ValueError("there are no problems to evaluate; ask for at least one")
    seen, cut = set(), set()
    for setting in config.settings:
        if setting.effective in seen:
            raise ValueError(f"evaluation: two settings decode as {setting.name}; keep one of them")
        seen.add(setting.effective)
        load_draft_model(lm, setting)
        requests = requests_of(lm, problems, setting, config.seed)
        if all(request is None for request in requests.values()):
            raise ValueError(
                f"none of the {len(problems)} prompts fits {lm.name}, which has "
                f"{lm.model.config.max_position_embeddings} positions; take a model with more"
            )
        cut |= {
            name
            for name, request in requests.items()
            if request is None or request.num_new(setting) < setting.max_new_tokens
        }
    return len(cut)


def identify(checkpoint: Path, name: str | None = None) -> Identity:
    """Method and seed of a checkpoint, found from its path and provenance.

    A student is named after its directory; in the layout of a comparison, which has a directory for
    each seed, after the parent. A model that was not distilled is the original.
    """
    record = checkpoint / "provenance.json"
    facts = read_object(record) if record.exists() else {}
    if "method" not in facts.get("config", {}):
        return Identity(name or ORIGINAL)
    counts = {key: facts.get(key) for key in ("seed", *COSTS)}
    for key, count in counts.items():
        # Students of earlier versions do not tell what was decoded for them.
        if key != "tokens_decoded" or count is not None:
            check_number(f"{record}: {key}", count, "[0, inf)", whole=True)
    path = checkpoint.resolve()
    own = path.parent.name if path.name == f"seed{facts['seed']}" else path.name
    return Identity(name or own, **cast("dict[str, int]", counts))


def evaluate_into(
    model: str, name: str | None, asked: GridConfig, split: Split, output: Path, *, progress: bool
) -> list[Evaluation]:
    """Evaluate a grid and write its rows to results.json, with all samples beside it.

    Returns:
        The evaluations; nothing in a launcher's processes but the first, which writes.
    """
    config = replace(asked, settings=asked.grid)
    task, num_workers = config.benchmark(), config.num_workers
    check_workers(num_workers)
    problems = task.examples(split, config.num_problems)
    lm = from_pretrained(model, dtype=config.dtype)
    cut = check_evaluation(lm, problems, config)
    if cut:
        print(
            f"t3d: {cut} of {len(problems)} prompts leave less room than max_new_tokens in "
            f"{lm.name}'s {lm.model.config.max_position_embeddings} positions; their answers "
            "are cut earlier",
            file=sys.stderr,
        )
    identity = identify(Path(model), name)
    recipe = {
        "model": model,
        "dtype": lm.dtype,
        "task": task.name,
        "split": split,
        "limit": config.num_problems,
        "problems": _problems_digest(problems),
        "identity": asdict(identity),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "measure_latency": config.measure_latency,
    }
    claim(output, recipe, lm.weights_hash)
    names = stage_names(identity, config.settings)
    plan = {name: {"prompt": len(problems)} for name in names.values()}
    # With several processes, all settings are decoded in one stage.
    with display(plan, show=progress and num_workers == 1):
        evaluations = evaluate_settings(
            lm,
            identity,
            task,
            problems,
            config,
            output / "evaluation",
            dtype=config.dtype,
            num_workers=num_workers,
            progress=progress,
        )
    if not evaluations:
        return []
    record = provenance(
        config=asdict(config) | recipe,
        seed=config.seed,
        model=model,
        weights_hash=lm.weights_hash,
    )
    union = [(e.row.decoding.name, sample) for e in evaluations for sample in e.samples]
    write_samples(output / "samples.parquet", union)
    save_results(output / "results.json", [e.row for e in evaluations], record)
    return evaluations


def _problems_digest(problems: Sequence[Example]) -> str:
    """SHA-256 over all fields of the problems that the model or the grader reads."""
    seen = [[e.id, e.question, e.prefix, e.verbatim, e.answer] for e in problems]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def evaluate_settings(
    model: str | Path | LanguageModel,
    identity: Identity,
    task: Task,
    problems: Sequence[Example],
    config: EvaluationConfig,
    directory: Path,
    *,
    dtype: Dtype = "auto",
    settings: Sequence[DecodingConfig] | None = None,
    full: Path | None = None,
    num_workers: int = 1,
    progress: bool,
) -> list[Evaluation]:
    """Evaluate each setting into a folder of `directory`; finished ones are read back.

    Processes of a launcher call it alike. Each decodes its share of the problems; the first one
    waits for the others, grades and writes, while they go on, and it alone returns evaluations.

    Args:
        dtype: number format in which a model that is loaded here decodes.
        model: a model, or the name of one, which is loaded only if a setting is missing.
        settings: the settings of the grid to evaluate; by default all.
        full: evaluation of the full-step teacher, which defines `agreement` once it exists.
        num_workers: processes that decode at the same time; each loads the model by its name.
    """
    if num_workers > 1:
        name = model.name if isinstance(model, LanguageModel) else str(model)
        _decode_shared(name, dtype, problems, config, directory, num_workers, progress=progress)
    rank, num_processes = launched()
    names = stage_names(identity, config.settings)
    evaluations = []
    for setting in config.settings if settings is None else settings:
        path = directory / setting.name
        with stage(names[setting]):
            if not is_finished(path):
                if not isinstance(model, LanguageModel):
                    model = from_pretrained(model, dtype=dtype)
                if num_processes > 1:
                    own = decoded_shards(path, rank, num_processes)
                    _decode_into(own, model, problems, setting, config, progress=progress)
                    if rank > 0:
                        continue
                    own.wait("example_id", len(problems), "answer", progress=progress)
                teacher = None
                if full is not None and is_finished(full):
                    teacher = Evaluation.load(full).final_answers
                shards = decoded_shards(path)
                evaluation = evaluate(
                    model,
                    task,
                    problems,
                    setting,
                    identity,
                    batch_size=config.batch_size,
                    seed=config.seed,
                    teacher_answers=teacher,
                    measure_latency=config.measure_latency,
                    shards=shards,
                    progress=progress,
                )
                evaluation.save(path)
                shutil.rmtree(shards.directory)
        if rank == 0:
            evaluations.append(Evaluation.load(path))
    return evaluations


def _decode_shared(
    model: str,
    dtype: Dtype,
    problems: Sequence[Example],
    config: EvaluationConfig,
    directory: Path,
    num_workers: int,
    *,
    progress: bool,
) -> None:
    """Decode the problems of all unfinished settings into shards; processes share the work."""
    paths = [(setting, directory / setting.name) for setting in config.settings]
    missing = [(setting, path) for setting, path in paths if not is_finished(path)]
    if not missing:
        return
    num = len(missing) * len(problems)
    with (
        pool(num_workers, hear) as workers,
        stage(f"decoding in {num_workers} processes"),
        bar("decoding", num, "prompt", show=progress) as count,
    ):
        shares = [
            workers.submit(_decode_share, shards, model, dtype, problems, setting, config)
            for setting, path in missing
            for rank in range(num_workers)
            for shards in [decoded_shards(path, rank, num_workers)]
        ]
        is_waiting = True
        while is_waiting:
            is_waiting = bool(wait(shares, timeout=1.0, return_when=FIRST_EXCEPTION).not_done)
            for share in shares:
                if share.done():
                    share.result()
            count.advance(sum(len(decoded_shards(path)) for _, path in missing) - count.done)


def _decode_share(
    shards: Shards,
    model: str,
    dtype: Dtype,
    problems: Sequence[Example],
    setting: DecodingConfig,
    config: EvaluationConfig,
) -> None:
    lm = _loaded(model, dtype)
    _decode_into(shards, lm, problems, setting, config, progress=False)


def _decode_into(
    shards: Shards,
    lm: LanguageModel,
    problems: Sequence[Example],
    setting: DecodingConfig,
    config: EvaluationConfig,
    *,
    progress: bool,
) -> None:
    """Decode the share of the problems that belongs to the rank of `shards`."""
    decode_problems(
        lm,
        problems,
        setting,
        batch_size=config.batch_size,
        seed=config.seed,
        shards=shards,
        progress=progress,
    )


@lru_cache(maxsize=1)
def _loaded(model: str, dtype: Dtype) -> LanguageModel:
    """A worker's model, loaded once for all settings."""
    return from_pretrained(model, dtype=dtype)


def stage_names(
    identity: Identity, settings: Sequence[DecodingConfig]
) -> dict[DecodingConfig, str]:
    """The stage's name for the evaluation of a checkpoint under each setting."""
    who = f"evaluation of {identity.method}"
    if identity.method != ORIGINAL:
        who += f", seed {identity.seed}"
    return {s: f"{who}, {one_line(name)}" for s, name in labels(settings).items()}
