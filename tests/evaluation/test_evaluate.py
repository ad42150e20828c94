"""Samples on disk, resumed and shared evaluations, agreement with the teacher, windows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Completion, Passes
from t3d.evaluation.evaluate import (
    Evaluation,
    _agreement,
    decode_problems,
    decoded_shards,
    evaluate,
)
from t3d.evaluation.samples import Sample, read_samples, write_samples
from t3d.models import LanguageModel, wrap
from t3d.tasks import Example, Grade, get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny

TASK = get_task("mini_gsm")
PROBLEMS = TASK.examples("dev", 7)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    texts = [text for e in PROBLEMS for text in (e.question, e.reference or "")]
    tokenizer = train_tokenizer(texts, vocab_size=320)
    return wrap(tiny(vocab_size=len(tokenizer), dtype=torch.float32), tokenizer, "tiny")


def sample(number: int, answer: str | None) -> Sample:
    completion = Completion([1], [0], [0.0], 1, "stop")
    return Sample(
        example_id=str(number),
        prompt="",
        prompt_ids=[],
        output="",
        completion=completion,
        grade=Grade(False, answer),
        answer=None,
    )


@pytest.mark.parametrize(
    ("student", "teacher", "share"),
    [
        (["1", "2"], ["1", "2"], 1.0),
        (["1", "2"], ["1", "3"], 0.5),
        # No answer agrees with nothing, not even with no answer.
        ([None, "2"], [None, "2"], 0.5),
        (["1", None], [None, "2"], 0.0),
    ],
)
def test_agreement(student: list[str | None], teacher: list[str | None], share: float) -> None:
    samples = [sample(number, answer) for number, answer in enumerate(student)]
    answers = {str(number): answer for number, answer in enumerate(teacher)}
    assert _agreement(samples, answers) == share
    assert _agreement(samples, None) is None


@pytest.mark.parametrize("window", [None, 4])
def test_a_row_carries_its_whole_setting(lm: LanguageModel, window: int | None) -> None:
    setting = DecodingConfig(128, 2, window=window, max_new_tokens=8, top_k=3, random_share=0.5)
    assert evaluate(lm, TASK, PROBLEMS[:2], setting, progress=False).row.decoding == setting
    assert setting.tokens_per_step == (64 if window is None else 2)


@given(
    text=st.text(),
    ids=st.lists(st.integers(0, 9), min_size=1),
    answers=st.tuples(*[st.none() | st.text()] * 3),
    verdicts=st.tuples(*[st.none() | st.booleans()] * 2),
)
def test_samples_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    ids: list[int],
    answers: tuple[str | None, str | None, str | None],
    verdicts: tuple[bool | None, bool | None],
) -> None:
    path = tmp_path_factory.mktemp("samples") / "samples.parquet"
    whole = Sample(
        example_id=text,
        prompt=text,
        prompt_ids=ids,
        output=text,
        completion=Completion(
            ids, [0] * len(ids), [-0.5] * len(ids), 1, "stop", Passes(1, 2, 3), ids[::-1]
        ),
        rank=2,
        seconds=0.25,
        grade=Grade(True, answers[0], verdicts[0], answers[1], verdicts[1]),
        answer=answers[2],
    )
    write_samples(path, [("fast", whole), (text, whole)])
    assert read_samples(path) == [("fast", whole), (text, whole)]
    assert pq.read_table(path).column("output").to_pylist() == [text, text]


def _outputs(evaluation: Evaluation) -> list[Completion]:
    """Without log-probabilities, which files hold in single precision."""
    return [dataclasses.replace(s.completion, log_probs=[]) for s in evaluation.samples]


def test_a_killed_evaluation_goes_on_to_the_same_result(lm: LanguageModel, tmp_path: Path) -> None:
    decoding = DecodingConfig(temperature=1.0, max_new_tokens=8)
    straight = evaluate(lm, TASK, PROBLEMS, decoding, progress=False)
    asked: list[int] = []

    class Stopped(Exception):
        pass

    def stop(self: Any, requests: Any, on_finish: Any) -> None:
        """As if a signal came after two answers."""
        asked.append(len(requests))
        original(self, requests[:2], on_finish=on_finish)
        raise Stopped

    original = BlockDecoder.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockDecoder, "decode", stop)
        with pytest.raises(Stopped):
            evaluate(lm, TASK, PROBLEMS, decoding, shards=decoded_shards(tmp_path), progress=False)
    with pytest.MonkeyPatch.context() as patch:

        def count(self: Any, requests: Any, on_finish: Any) -> Any:
            asked.append(len(requests))
            return original(self, requests, on_finish=on_finish)

        patch.setattr(BlockDecoder, "decode", count)
        resumed = evaluate(
            lm, TASK, PROBLEMS, decoding, shards=decoded_shards(tmp_path), progress=False
        )
    assert asked == [len(PROBLEMS), len(PROBLEMS) - 2]
    assert _outputs(resumed) == _outputs(straight)
    fixed = dataclasses.replace(resumed.row, tokens_per_second=straight.row.tokens_per_second)
    assert fixed == straight.row


def test_prompts_without_room_are_cut_or_answered_wrong(lm: LanguageModel, tmp_path: Path) -> None:
    positions = lm.model.config.max_position_embeddings
    word = PROBLEMS[0].question.split()[0] + " "
    long = [Example(str(n), word * n, "0") for n in range(0, positions, 7)]
    decoding = DecodingConfig(block_size=4, max_new_tokens=16)
    shards = decoded_shards(tmp_path)
    found = evaluate(lm, TASK, [*long, *PROBLEMS], decoding, shards=shards, progress=False)
    lengths = []
    for sample in found.samples:
        completion, room = sample.completion, positions - len(sample.prompt_ids)
        assert completion.num_response_tokens <= max(0, min(16, room))
        if completion.finish_reason == "length":
            assert completion.num_response_tokens == max(0, min(16, room))
        lengths.append(completion.num_response_tokens)
    assert 0 in lengths
    assert found.row.n == len(long) + len(PROBLEMS)
    # Those with room are answered as without the others.
    alone = evaluate(lm, TASK, PROBLEMS, decoding, progress=False)
    assert _outputs(alone) == _outputs(found)[len(long) :]


def test_processes_decode_their_shares_and_the_union_is_the_same(
    lm: LanguageModel, tmp_path: Path
) -> None:
    decoding = DecodingConfig(max_new_tokens=8)
    shares = [
        decode_problems(
            lm,
            PROBLEMS,
            decoding,
            batch_size=4,
            seed=0,
            shards=decoded_shards(tmp_path, rank, 3),
            progress=False,
        )
        for rank in range(3)
    ]
    assert sorted(d.example_id for share in shares for d in share) == sorted(e.id for e in PROBLEMS)
    straight = evaluate(lm, TASK, PROBLEMS, decoding, progress=False)
    union = evaluate(lm, TASK, PROBLEMS, decoding, shards=decoded_shards(tmp_path), progress=False)
    assert _outputs(union) == _outputs(straight)
    assert {s.rank for s in union.samples} == {0, 1, 2}
    tokens, seconds = [0] * 3, [0.0] * 3
    for s in union.samples:
        tokens[s.rank] += s.completion.num_response_tokens
        seconds[s.rank] += s.seconds
    rates = [t / s for t, s in zip(tokens, seconds, strict=True)]
    assert union.row.tokens_per_second == pytest.approx(sum(rates))
