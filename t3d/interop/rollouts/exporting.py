"""Export a trajectory store as rollout JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t3d.core.files import write_bytes
from t3d.core.store import TrajectoryStore
from t3d.core.trajectory import Trajectory
from t3d.interop.rollouts.alignment import (
    Skipped,
    TransferReport,
    UnalignedError,
    check_text,
    encode,
    passes,
)
from t3d.interop.rollouts.rows import Format
from t3d.models import LanguageModel

_QUESTION = "QUESTION"
"""Placeholder for the question in the chat template."""


def export_rollouts(
    store: TrajectoryStore, lm: LanguageModel, output: Path, *, format: Format
) -> TransferReport:
    """Write a file that the code of T3D's authors, or dLLM-RL's SDAR training, reads.

    Their readers tokenize texts again, so a trajectory whose text gives other ids is left out. The
    format has no place for tokens behind the stop token, x_T and log-probabilities.

    Args:
        store: a complete store.
        lm: the model whose tokenizer made the store's ids.
        output: the .json file to write.
        format: t3d for train/self_ddo_sdar_full.py, dllm-rl for train/sft_sdar.py. Rewards,
            which dLLM-RL's reinforcement learning reads, are not known here.

    Raises:
        ValueError: for a store that is not complete, or of which nothing can be written.
    """
    rows = store.read_complete()
    prompts = [lm.text(row.prompt_ids) for row in rows]
    ids = [row.response_ids[: row.num_response_tokens] for row in rows]
    texts = [lm.text(own) for own in ids]
    again = zip(encode(lm, prompts), encode(lm, texts), strict=True)
    entries: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for index, (row, prompt, text, (prompt_again, ids_again)) in enumerate(
        zip(rows, prompts, texts, again, strict=True)
    ):
        try:
            if row.prompt_ids != prompt_again:
                raise UnalignedError("prompt", "the prompt's text gives other token ids")
            check_text(lm, ids[index], text, ids[index] == ids_again)
            entries.append(_entry(lm, row, prompt, text, format))
        except UnalignedError as error:
            skipped.append(Skipped(index, 0, row.prompt_id, error.reason, error.detail))
    report = TransferReport(str(store.path), str(output), len(entries), skipped)
    report.require_some()
    write_bytes(output, (json.dumps(entries, ensure_ascii=False, indent=1) + "\n").encode())
    return report


def _entry(
    lm: LanguageModel, row: Trajectory, prompt: str, text: str, format: Format
) -> dict[str, Any]:
    entry: dict[str, Any] = {"prompt_id": row.prompt_id, "prompt": prompt}
    if row.answer is not None:
        entry["ground_truth_answer"] = row.answer
    steps = passes(row)
    if format == "dllm-rl":
        return entry | {"response": text, "step_map": steps}
    return entry | {"question": _question(lm, prompt), "answer": [text], "step_map": [steps]}


def _question(lm: LanguageModel, prompt: str) -> str:
    """The user's turn of a prompt; the authors' reader puts the chat template around it again.

    Their decoder's prompt lacks the template's last newline, which their reader adds.
    """
    head, _, tail = _template(lm, _QUESTION).partition(_QUESTION)
    body = prompt.rstrip("\n")
    question = body.removeprefix(head).removesuffix(tail)
    if _template(lm, question) != body:
        raise UnalignedError("prompt", "the prompt is no chat template around one question")
    return question


def _template(lm: LanguageModel, question: str) -> str:
    message = {"role": "user", "content": question}
    text = lm.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return str(text).rstrip("\n")
