"""Rollout JSON as T3D's authors and dLLM-RL write it: a list of objects, read and checked.

    t3d      answer (full_output before their data/rename_key.py): the responses' texts
             step_map: one list a response
             question; prompt: the text that was decoded; ground_truth_answer
    dllm-rl  response, step_map, prompt: one response an object, as reward/rl_reward.py writes
             and train/sft_sdar.py reads; or full_output, as above

Other keys are ignored. `prompt_id` is t3d's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t3d.tasks.upstream import upstream_rows

Format = Literal["t3d", "dllm-rl"]


@dataclass(frozen=True)
class Response:
    """One response of a rollout file."""

    entry: int
    sample: int
    prompt_id: str
    prompt: str | None
    """Text of the whole prompt, where the file has it."""
    question: str
    """The user's turn; empty where the file has only the prompt."""
    answer: str | None
    text: str
    step_map: list[int]
    """Step numbers, one a token; empty for a rollout that was lost."""


def read_responses(source: Path, format: Format) -> list[Response]:
    """Every response of a rollout file, in its order.

    Raises:
        ValueError: naming file, entry and key, for whatever is not in that format.
    """
    rows = upstream_rows(source, "rollouts")
    responses: list[Response] = []
    entries: dict[str, int] = {}
    for entry, row in enumerate(rows):
        try:
            for response in _responses(row, entry, source.stem, format):
                name = response.prompt_id
                if name in entries:
                    raise ValueError(f"the id {name!r} is already that of entry {entries[name]}")
                entries[name] = entry
                responses.append(response)
        except ValueError as error:
            raise ValueError(f"{source}, entry {entry}: {error}") from None
    return responses


def _responses(row: Any, entry: int, stem: str, format: Format) -> Iterator[Response]:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    keys = ("full_output", "answer" if format == "t3d" else "response")
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise ValueError(f"lacks the key {keys[1]!r} (or {keys[0]!r}); is it of format {format}?")
    if "step_map" not in row:
        raise ValueError("lacks the key 'step_map', without which it is no trajectory")
    texts, maps = row[key], row["step_map"]
    if key == "response":
        maps = [maps]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not isinstance(maps, list):
        raise ValueError(f"{key!r} and 'step_map' must be lists, one item a response")
    if len(texts) != len(maps):
        raise ValueError(
            f"{key!r} has {len(texts)} responses, 'step_map' {len(maps)} lists; "
            "evaluation keeps no step maps, take the file that the rollout wrote"
        )
    name = _text(row, "prompt_id") or f"{stem}/{entry}"
    prompt, question = _text(row, "prompt") or None, _text(row, "question") or ""
    if prompt is None and not question:
        raise ValueError("lacks the key 'prompt' (or 'question')")
    answer = _text(row, "ground_truth_answer") or None
    for sample, (text, steps) in enumerate(zip(texts, maps, strict=True)):
        label = name if len(texts) == 1 else f"{name}/{sample}"
        text = _text({key: text}, key) or ""
        # Their writer puts an empty text in place of the list where the rollout was lost.
        steps = [] if steps == "" else steps
        if not isinstance(steps, list) or not all(type(step) is int for step in steps):
            raise ValueError(f"'step_map' must hold lists of whole numbers, got {steps!r:.60}")
        yield Response(entry, sample, label, prompt, question, answer, text, steps)


def _text(row: dict[str, Any], key: str) -> str | None:
    """A text; None where the key is absent or null."""
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a text, got {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key!r} holds half a surrogate pair: {value!r:.60}") from None
    return value
