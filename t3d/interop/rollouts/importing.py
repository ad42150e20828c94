"""Import rollout JSON into a trajectory store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from t3d.core.blocks import BlockLayout
from t3d.core.files import check_output, hash_file, write_json
from t3d.core.provenance import package_versions
from t3d.core.store import Manifest, TrajectoryStore, hash_prompts
from t3d.core.trajectory import Trajectory
from t3d.interop.rollouts.alignment import (
    Skipped,
    TransferReport,
    UnalignedError,
    check_text,
    encode,
    make_trajectory,
)
from t3d.interop.rollouts.rows import Format, Response, read_responses
from t3d.models import LanguageModel
from t3d.tasks import Example

REPORT = "import.json"
"""File in the store's directory that lists what was not taken, and why."""
_SHARD = 512


def import_rollouts(
    source: Path,
    lm: LanguageModel,
    output: Path,
    *,
    format: Format,
    block_size: int,
    prompt_suffix: str = "",
) -> TransferReport:
    """Write a store of the responses whose tokens and step maps are provably aligned.

    The store appears as a whole, with a report of the others beside its manifest. Its
    log-probabilities are 0: nobody wrote them down.

    Args:
        source: a JSON list; see `t3d.interop.rollouts.rows`.
        lm: the teacher, whose tokenizer the rollouts were decoded with.
        output: directory of the store.
        format: format of the file, which determines its keys.
        block_size: block size of the decoder that made the rollouts.
        prompt_suffix: what followed each question in the user's turn, for files without the
            key `prompt`, which holds the whole prompt.

    Raises:
        ValueError: for a file of another format, an output that holds something, or a file of which
            nothing can be taken.
    """
    BlockLayout(block_size)
    check_output(output)
    responses = read_responses(source, format)
    if prompt_suffix and all(response.prompt for response in responses):
        raise ValueError(
            f"{source}: every entry holds its 'prompt', as it was decoded; "
            "leave out prompt_suffix, which is for files that lack it"
        )
    rows, skipped = _align(lm, responses, block_size, prompt_suffix)
    report = TransferReport(str(source), str(output), len(rows), skipped)
    report.require_some()
    manifest = Manifest(
        prompt_set_hash=hash_prompts([(row.prompt_id, row.prompt_ids, row.answer) for row in rows]),
        num_prompts=len(rows),
        decoding={
            "imported_from": source.name,
            "sha256": hash_file(source),
            "format": format,
            "block_size": block_size,
            "prompt_suffix": prompt_suffix,
            "log_probs": "unknown, 0",
        },
        model=lm.name,
        # The file does not prove that this model's weights decoded the responses.
        weights_hash=None,
        seed=0,
        packages=package_versions(),
        dtype="unknown",
    )
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    try:
        store = TrajectoryStore.create(partial, manifest)
        for start in range(0, len(rows), _SHARD):
            store.append(list(enumerate(rows[start : start + _SHARD], start=start)))
        write_json(partial / REPORT, asdict(report) | {"counts": report.counts})
        try:
            partial.replace(output)
        except OSError as error:
            raise ValueError(f"{output}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _align(
    lm: LanguageModel, responses: Sequence[Response], block_size: int, prompt_suffix: str
) -> tuple[list[Trajectory], list[Skipped]]:
    """Trajectories of the responses that can be aligned, and a report of the others."""
    ids = encode(lm, [response.text for response in responses])
    texts = [lm.text(own) for own in ids]
    rows: list[Trajectory] = []
    skipped: list[Skipped] = []
    for response, row_ids, text in zip(responses, ids, texts, strict=True):
        question = response.question + prompt_suffix
        try:
            try:
                (prompt_ids,) = lm.encode_examples(
                    [Example(response.prompt_id, question, verbatim=response.prompt)]
                )
            except ValueError as error:
                raise UnalignedError("prompt", str(error)) from None
            if not row_ids or not response.step_map:
                raise UnalignedError("lost", "no response, or none with steps")
            check_text(lm, row_ids, text, text == response.text)
            rows.append(
                make_trajectory(
                    lm,
                    prompt_ids,
                    row_ids,
                    response.step_map,
                    block_size,
                    prompt_id=response.prompt_id,
                    answer=response.answer,
                )
            )
        except UnalignedError as error:
            name = response.prompt_id
            skipped.append(
                Skipped(response.entry, response.sample, name, error.reason, error.detail)
            )
    return rows, skipped
