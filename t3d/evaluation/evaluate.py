"""Decode a task's problems with one setting and grade the answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from t3d.decoding.build import make_decoder
from t3d.decoding.request import Completion, DecodingConfig, Passes, Request
from t3d.evaluation.metrics import decoding_metrics, wilson_interval
from t3d.evaluation.results import ResultRow
from t3d.models import LanguageModel
from t3d.provenance import write_json
from t3d.rng import derive_key
from t3d.tasks import Example, Grade, Task

_LATENCY_PROBLEMS = 8


@dataclass(frozen=True)
class Sample:
    """One problem's output and grade."""

    example_id: str
    output: str
    grade: Grade
    completion: Completion


@dataclass(frozen=True)
class Evaluation:
    """A row of results and the samples behind it."""

    row: ResultRow
    samples: list[Sample]

    @property
    def final_answers(self) -> dict[str, str | None]:
        return {sample.example_id: sample.grade.final_answer for sample in self.samples}

    def save(self, path: Path) -> None:
        """Write row and samples as one JSON file, atomically."""
        write_json(path, {"row": asdict(self.row), "samples": [asdict(s) for s in self.samples]})

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ValueError: if it is no such file.
        """
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            row = document["row"]
            samples = [
                Sample(
                    s["example_id"],
                    s["output"],
                    Grade(**s["grade"]),
                    Completion(
                        **{**s["completion"], "passes": Passes(**s["completion"]["passes"])}
                    ),
                )
                for s in document["samples"]
            ]
            return cls(ResultRow(**{**row, "ci95": tuple(row["ci95"])}), samples)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not an evaluation of this version ({error}); delete it to evaluate anew"
            ) from None


@dataclass(frozen=True)
class Identity:
    """Which checkpoint a row is about."""

    method: str
    seed: int = 0
    optimizer_steps: int = 0
    tokens_seen: int = 0


def evaluate(
    lm: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    decoding: DecodingConfig,
    identity: Identity | None = None,
    *,
    batch_size: int = 250,
    seed: int = 0,
    teacher_answers: Mapping[str, str | None] | None = None,
    measure_latency: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Accuracy and cost of one checkpoint under one decoding setting.

    Args:
        identity: what the row says of the checkpoint; by default its name, as if untrained.
        teacher_answers: the full-step teacher's final answer to each problem, for `agreement`.
        measure_latency: also decode a few problems at batch 1 and record the mean seconds.

    Raises:
        ValueError: for an empty set, or prompts that do not fit the model.
    """
    if not examples:
        raise ValueError(f"{task.name}: no problems to evaluate")
    identity = identity or Identity(lm.name)
    prompts = lm.encode_examples(examples)
    requests = [
        Request(ids, derive_key(seed, "evaluate", example.id))
        for ids, example in zip(prompts, examples, strict=True)
    ]
    label = f"{identity.method}, block {decoding.window_size} x {decoding.denoising_steps}"
    decoder = make_decoder(lm, decoding, batch_size)
    with tqdm(total=len(requests), desc=label, unit="problem", disable=not progress) as bar:

        def tick(_: int, completion: Completion) -> None:
            bar.update()

        started = time.perf_counter()
        completions = decoder.decode(requests, on_finish=tick)
        seconds = time.perf_counter() - started
    outputs = [lm.decode(completion.token_ids) for completion in completions]
    grades = task.grade(examples, outputs)
    samples = [
        Sample(example.id, output, grade, completion)
        for example, output, grade, completion in zip(
            examples, outputs, grades, completions, strict=True
        )
    ]
    correct = sum(sample.grade.correct for sample in samples)
    row = ResultRow(
        task=task.name,
        method=identity.method,
        seed=identity.seed,
        model=lm.name,
        block_size=decoding.window_size,
        remasking=decoding.remasking,
        denoising_steps=decoding.denoising_steps,
        confidence_threshold=decoding.confidence_threshold
        if decoding.remasking == "low_confidence_dynamic"
        else None,
        temperature=decoding.temperature,
        accuracy=correct / len(samples),
        n=len(samples),
        ci95=wilson_interval(correct, len(samples)),
        **asdict(decoding_metrics(completions)),
        agreement=_agreement(samples, teacher_answers),
        tokens_per_second=sum(c.num_response_tokens for c in completions) / seconds,
        latency_seconds=_latency(lm, decoding, requests) if measure_latency else None,
        optimizer_steps=identity.optimizer_steps,
        tokens_seen=identity.tokens_seen,
    )
    return Evaluation(row, samples)


def _agreement(
    samples: Sequence[Sample], teacher_answers: Mapping[str, str | None] | None
) -> float | None:
    """Share of problems with the teacher's final answer; no answer agrees with nothing."""
    if teacher_answers is None:
        return None
    same = [
        s.grade.final_answer is not None and s.grade.final_answer == teacher_answers[s.example_id]
        for s in samples
    ]
    return sum(same) / len(same)


def _latency(lm: LanguageModel, decoding: DecodingConfig, requests: Sequence[Request]) -> float:
    """Mean seconds a request at batch 1."""
    decoder = make_decoder(lm, decoding, batch_size=1)
    started = time.perf_counter()
    few = requests[:_LATENCY_PROBLEMS]
    decoder.decode(few)
    return (time.perf_counter() - started) / len(few)
