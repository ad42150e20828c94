"""Decode a task's problems with one setting and grade the answers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from t3d.core.blocks import BlockLayout
from t3d.core.files import read_object, write_json
from t3d.core.progress import bar
from t3d.core.rng import derive_key
from t3d.core.shards import Shards
from t3d.decoding.build import make_decoder
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Completion, Request
from t3d.evaluation.metrics import decoding_metrics, wilson_interval
from t3d.evaluation.results import Cell, ResultRow, read_row, row_document
from t3d.evaluation.samples import (
    DECODED,
    Decoded,
    Sample,
    decoded_row,
    read_decoded,
    read_samples,
    write_samples,
)
from t3d.models import LanguageModel
from t3d.tasks import Example, Task

_LATENCY_PROBLEMS = 8
_FLUSH_SECONDS = 20.0
"""Seconds between two writes of decoded outputs, which is what a killed evaluation loses at
most."""
_ROW, _SAMPLES = "row.json", "samples.parquet"


@dataclass(frozen=True)
class Evaluation:
    """A row of results and the samples behind it."""

    row: ResultRow
    samples: list[Sample]

    @property
    def cell(self) -> Cell:
        """The row, and which problems were right."""
        return Cell(self.row, tuple(sample.grade.correct for sample in self.samples))

    @property
    def final_answers(self) -> dict[str, str | None]:
        return {sample.example_id: sample.grade.final_answer for sample in self.samples}

    def save(self, directory: Path) -> None:
        """Write samples, then the row, which marks the evaluation as finished."""
        directory.mkdir(parents=True, exist_ok=True)
        write_samples(directory / _SAMPLES, [(directory.name, s) for s in self.samples])
        write_json(directory / _ROW, row_document(self.row))

    @classmethod
    def load(cls, directory: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ValueError: if it is no such directory.
        """
        path = directory / _ROW
        try:
            row = read_row(read_object(path), str(path))
        except ValueError as error:
            raise ValueError(f"{error}; delete its directory to evaluate anew") from None
        return cls(row, [sample for _, sample in read_samples(directory / _SAMPLES)])


def is_finished(directory: Path) -> bool:
    """Whether a finished evaluation is in a directory."""
    return (directory / _ROW).exists()


def evaluation_folders(directory: Path) -> list[Path]:
    """The finished evaluations in the folder of one setting, of `t3d eval`, or of a run."""
    if is_finished(directory):
        return [directory]
    return sorted(path.parent for path in directory.glob(f"evaluation/**/{_ROW}"))


@dataclass(frozen=True)
class Identity:
    """The checkpoint that a row describes: method and seed."""

    method: str
    seed: int = 0
    optimizer_steps: int = 0
    tokens_seen: int = 0
    tokens_decoded: int | None = 0


def requests_of(
    lm: LanguageModel, examples: Sequence[Example], decoding: DecodingConfig, seed: int
) -> dict[str, Request | None]:
    """One request a problem; its random numbers depend on the seed and the problem's id alone.

    Where a prompt leaves less room than max_new_tokens, the output may fill that room; the request
    is None where there is no room at all.
    """
    positions = lm.model.config.max_position_embeddings
    end = BlockLayout(decoding.block_size).floor(positions)
    requests: dict[str, Request | None] = {}
    for ids, example in zip(lm.encode_examples(examples), examples, strict=True):
        new = min(decoding.max_new_tokens, end - len(ids))
        key = derive_key(seed, "evaluate", example.id)
        requests[example.id] = Request(ids, key, new) if new > 0 else None
    return requests


def decode_problems(
    lm: LanguageModel,
    examples: Sequence[Example],
    decoding: DecodingConfig,
    *,
    batch_size: int,
    seed: int,
    shards: Shards | None = None,
    label: str = "decoding",
    progress: bool = True,
) -> list[Decoded]:
    """Decode problems in their order.

    Args:
        shards: store in which outputs are kept as they come; those in it are not decoded again.
            Of several processes each decodes its share, and gets back that share alone.

    """
    rank = 0
    known: dict[str, Decoded] = {}
    if shards is not None:
        shards.prepare()
        rank, known = shards.rank, _read(shards)
        examples = examples[rank :: shards.world_size]
    missing = [example for example in examples if example.id not in known]
    asked = requests_of(lm, missing, decoding, seed) if missing else {}
    requests = [(name, request) for name, request in asked.items() if request is not None]

    def decoded(name: str, ids: list[int], completion: Completion, share: float = 0.0) -> Decoded:
        return Decoded(
            example_id=name,
            prompt=lm.text(ids),
            prompt_ids=ids,
            output=lm.decode(completion.token_ids),
            completion=completion,
            rank=rank,
            seconds=share,
        )

    unread = [example for example in missing if asked[example.id] is None]
    for example, ids in zip(unread, lm.encode_examples(unread) if unread else [], strict=True):
        known[example.id] = decoded(example.id, ids, Completion([], [], [], 0, "length"))
    pending: list[tuple[int, Completion]] = []
    started = time.perf_counter()

    def flush() -> None:
        nonlocal started
        if not pending:
            return
        share = (time.perf_counter() - started) / len(pending)
        fresh = [
            decoded(name, request.prompt_ids, completion, share)
            for i, completion in pending
            for name, request in [requests[i]]
        ]
        known.update({one.example_id: one for one in fresh})
        pending.clear()
        if shards is not None:
            shards.append([decoded_row(one) for one in fresh])
        started = time.perf_counter()

    done = len(examples) - len(missing)
    with bar(label, len(examples), "prompt", done=done, show=progress) as count:

        def finish(number: int, completion: Completion) -> None:
            pending.append((number, completion))
            count.advance()
            if shards is not None and time.perf_counter() - started > _FLUSH_SECONDS:
                flush()

        try:
            if requests:
                decoder = make_decoder(lm, decoding, batch_size)
                decoder.decode([request for _, request in requests], on_finish=finish)
        finally:
            flush()
    return [known[example.id] for example in examples]


def _read(shards: Shards) -> dict[str, Decoded]:
    rows = (row for _, table in shards.tables() for row in table.to_pylist())
    return {row["example_id"]: read_decoded(row) for row in rows}


def decoded_shards(directory: Path, rank: int = 0, world_size: int = 1) -> Shards:
    """The store of an unfinished evaluation's outputs."""
    return Shards(directory / "shards", DECODED, rank=rank, world_size=world_size)


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
    shards: Shards | None = None,
    progress: bool = True,
) -> Evaluation:
    """Accuracy and cost of one checkpoint under one decoding setting.

    >>> task, lm = t3d.get_task("mini_gsm"), t3d.from_pretrained("mini_teacher")
    >>> full = t3d.DecodingConfig(block_size=4, denoising_steps=4, max_new_tokens=96)
    >>> t3d.evaluate(lm, task, task.examples("test", 4), full, progress=False).row.accuracy
    1.0

    Args:
        identity: method and seed in the row; by default the model's name, as if it were untrained.
        teacher_answers: the full-step teacher's final answer to each problem, for `agreement`.
        measure_latency: also decode a few problems at batch 1 and record the mean seconds.
        shards: store in which outputs are kept, so that a killed evaluation can go on.

    A problem whose prompt leaves no room for an answer counts as wrong and truncated.

    Raises:
        ValueError: for an empty set, or if no prompt fits the model.
    """
    if not examples:
        raise ValueError(f"{task.name}: no problems to evaluate")
    identity = identity or Identity(lm.name)
    outputs = decode_problems(
        lm,
        examples,
        decoding,
        batch_size=batch_size,
        seed=seed,
        shards=shards,
        label=f"evaluation of {identity.method}",
        progress=progress,
    )
    grades = task.grade(examples, [decoded.output for decoded in outputs])
    samples = [
        Sample(**vars(decoded), grade=grade, answer=example.answer)
        for example, decoded, grade in zip(examples, outputs, grades, strict=True)
    ]
    correct = sum(grade.correct for grade in grades)
    row = ResultRow(
        task=task.name,
        method=identity.method,
        seed=identity.seed,
        model=lm.name,
        dtype=lm.dtype,
        decoding=decoding,
        accuracy=correct / len(samples),
        n=len(samples),
        ci95=wilson_interval(correct, len(samples)),
        **asdict(decoding_metrics([decoded.completion for decoded in outputs])),
        agreement=_agreement(samples, teacher_answers),
        tokens_per_second=_tokens_per_second(outputs),
        latency_seconds=_latency(lm, decoding, examples, seed) if measure_latency else None,
        optimizer_steps=identity.optimizer_steps,
        tokens_seen=identity.tokens_seen,
        tokens_decoded=identity.tokens_decoded,
        string_accuracy=_share([grade.string_correct for grade in grades]),
        no_answer=sum(grade.final_answer is None for grade in grades) / len(samples),
        timed_out=sum(grade.reason == "timeout" for grade in grades) / len(samples),
        faithful=_share([grade.faithful for grade in grades]),
    )
    return Evaluation(row, samples)


def _share(verdicts: Sequence[bool | None]) -> float | None:
    """The share of true verdicts; None where the task gives no verdicts of this kind."""
    return None if None in verdicts else sum(map(bool, verdicts)) / len(verdicts)


def _agreement(
    samples: Sequence[Sample], teacher_answers: Mapping[str, str | None] | None
) -> float | None:
    """Share of problems with the teacher's final answer; a missing answer never agrees."""
    if teacher_answers is None:
        return None
    same = [
        s.grade.final_answer is not None and s.grade.final_answer == teacher_answers[s.example_id]
        for s in samples
    ]
    return sum(same) / len(same)


def _tokens_per_second(outputs: Sequence[Decoded]) -> float:
    """The rates of all processes together, each over its own decoding time."""
    tokens: dict[int, int] = defaultdict(int)
    seconds: dict[int, float] = defaultdict(float)
    for decoded in outputs:
        tokens[decoded.rank] += decoded.completion.num_response_tokens
        seconds[decoded.rank] += decoded.seconds
    return sum(tokens[rank] / seconds[rank] for rank in tokens if seconds[rank])


def _latency(
    lm: LanguageModel, decoding: DecodingConfig, examples: Sequence[Example], seed: int
) -> float:
    """Mean seconds a request at batch 1, over the first requests that fit the model."""
    asked = requests_of(lm, examples, decoding, seed).values()
    requests = [request for request in asked if request is not None][:_LATENCY_PROBLEMS]
    decoder = make_decoder(lm, decoding, batch_size=1)
    started = time.perf_counter()
    decoder.decode(requests)
    return (time.perf_counter() - started) / len(requests)
