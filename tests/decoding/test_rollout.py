"""What a rollout records, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
from pathlib import Path

import pytest

from t3d.core.rng import derive_key
from t3d.core.store import TrajectoryStore
from t3d.decoding.build import make_decoder
from t3d.decoding.config import RolloutConfig
from t3d.decoding.request import Request
from t3d.decoding.rollout import rollout
from t3d.models.loading import LanguageModel
from t3d.tasks.base import Example
from tests.decoding.toy import CONFIG, VOCABULARY, shards, toy_examples, toy_lm


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return toy_lm()


def test_rows_are_what_the_decoder_gives_each_prompt_alone(
    lm: LanguageModel, tmp_path: Path
) -> None:
    examples = toy_examples(8)
    store = rollout(lm, examples, tmp_path / "store", CONFIG, progress=False)
    rows = TrajectoryStore.open(store.path).read()
    decoder = make_decoder(lm, CONFIG.decoding, batch_size=1)
    assert len(rows) == len(examples)
    for example, row in zip(examples, rows, strict=True):
        ids = lm.encode_prompt(example.question)
        request = Request(ids, derive_key(CONFIG.seed, example.id))
        completion = decoder.decode([request])[0]
        assert (row.prompt_id, row.answer) == (example.id, example.answer)
        assert (row.prompt_ids, row.block_size) == (ids, 4)
        assert row.response_ids == completion.response_ids
        assert row.step_map == completion.step_map
        assert row.num_response_tokens == completion.num_response_tokens
        assert row.finish_reason == completion.finish_reason
        single = [struct.unpack("f", struct.pack("f", x))[0] for x in completion.log_probs]
        assert row.log_probs == pytest.approx(single, rel=1e-6)
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    assert {len(row.prompt_ids) % 4 for row in rows} == {0, 1, 2, 3}


def test_a_random_start_is_stored_and_comes_back(lm: LanguageModel, tmp_path: Path) -> None:
    decoding = dataclasses.replace(CONFIG.decoding, random_share=0.5)
    config = dataclasses.replace(CONFIG, decoding=decoding)
    examples = toy_examples(5)
    store = rollout(lm, examples, tmp_path / "store", config, progress=False)
    decoder = make_decoder(lm, decoding, batch_size=1)
    for example, row in zip(examples, store.read(), strict=True):
        request = Request(row.prompt_ids, derive_key(config.seed, example.id))
        assert row.initial_ids == decoder.decode([request])[0].initial_ids
        shares = [token == lm.mask_token_id for token in row.initial_ids]
        assert any(shares)
        assert not all(shares)


def test_mask_and_pad_are_never_generated(lm: LanguageModel) -> None:
    requests = [Request([3], seed) for seed in range(40)]
    config = dataclasses.replace(CONFIG.decoding, temperature=5.0)
    seen = {
        token
        for completion in make_decoder(lm, config, batch_size=40).decode(requests)
        for token, step in zip(completion.response_ids, completion.step_map, strict=True)
        if step >= 0
    }
    assert seen == set(range(2, len(VOCABULARY)))


def test_pad_that_is_a_stop_token_ends_responses(lm: LanguageModel) -> None:
    padded = dataclasses.replace(lm, stop_token_ids=(1,))
    requests = [Request([3], seed) for seed in range(20)]
    decoded = make_decoder(padded, CONFIG.decoding, batch_size=20).decode(requests)
    assert {c.token_ids[-1] for c in decoded if c.finish_reason == "stop"} == {1}


def test_a_row_depends_on_its_prompt_alone(lm: LanguageModel, tmp_path: Path) -> None:
    examples = toy_examples(7)
    rows = rollout(lm, examples, tmp_path / "a", CONFIG, progress=False).read()
    other = dataclasses.replace(CONFIG, batch_size=5, shard_size=2)
    subset = rollout(lm, examples[:2:-1], tmp_path / "b", other, progress=False).read()
    assert [(r.prompt_id, r.response_ids, r.step_map) for r in subset[::-1]] == [
        (r.prompt_id, r.response_ids, r.step_map) for r in rows[3:]
    ]


def test_another_seed_gives_other_rows(lm: LanguageModel, tmp_path: Path) -> None:
    one, other = (
        rollout(lm, toy_examples(3), tmp_path / str(seed), config, progress=False).read()
        for seed, config in ((s, dataclasses.replace(CONFIG, seed=s)) for s in (0, 1))
    )
    assert one != other


def test_a_complete_store_is_left_as_it_is(lm: LanguageModel, tmp_path: Path) -> None:
    store = rollout(lm, toy_examples(4), tmp_path / "store", CONFIG, progress=False)
    times = {file: file.stat().st_mtime_ns for file in store.path.rglob("*.*")}
    rollout(lm, toy_examples(4), store.path, CONFIG, progress=False)
    assert times == {file: file.stat().st_mtime_ns for file in store.path.rglob("*.*")}


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "the prompt set is empty"),
        (
            [Example("x", "1"), Example("y", "1"), Example("x", "2")],
            "prompt id 'x' is used 2 times",
        ),
        (
            [Example("x", "1"), Example("long", "7" * 20)],
            "prompt 'long' has 21 tokens, but toy takes at most 20 with max_new_tokens=12",
        ),
    ],
)
def test_bad_prompt_sets_are_refused_before_anything_is_written(
    lm: LanguageModel, tmp_path: Path, examples: list[Example], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        rollout(lm, examples, tmp_path / "store", CONFIG, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_share_without_room_is_refused_before_anything_is_written(
    lm: LanguageModel, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, memory_share=1e-6)
    with pytest.raises(ValueError, match="nothing is left for keys and values"):
        rollout(lm, toy_examples(2), tmp_path / "store", config, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_share_changes_no_row(lm: LanguageModel, tmp_path: Path) -> None:
    examples = toy_examples(5)
    config = dataclasses.replace(CONFIG, memory_share=0.9)
    with_share = rollout(lm, examples, tmp_path / "share", config, progress=False)
    assert shards(with_share.path) == shards(
        rollout(lm, examples, tmp_path / "whole", CONFIG, progress=False).path
    )


def test_drafts_change_no_byte_of_a_store_and_may_come_and_go(
    lm: LanguageModel, tmp_path: Path
) -> None:
    plain, drafted = tmp_path / "plain", tmp_path / "drafted"
    examples, settings = toy_examples(9), dataclasses.replace(CONFIG, shard_size=3)
    verified = dataclasses.replace(CONFIG.decoding, draft_states=3)
    rollout(lm, examples, plain, settings, progress=False)
    rollout(lm, examples, drafted, dataclasses.replace(settings, decoding=verified), progress=False)
    files = {path.relative_to(plain) for path in plain.rglob("*") if path.is_file()}
    assert files == {path.relative_to(drafted) for path in drafted.rglob("*") if path.is_file()}
    for name in files:
        assert (plain / name).read_bytes() == (drafted / name).read_bytes()
    for shard in drafted.glob("shards/*000000.*"):
        shard.unlink()
    rollout(lm, examples, drafted, settings, progress=False)
    assert [t.step_map for t in TrajectoryStore.open(drafted).read()] == [
        t.step_map for t in TrajectoryStore.open(plain).read()
    ]


def test_the_whole_last_block_must_fit(lm: LanguageModel, tmp_path: Path) -> None:
    decoding = dataclasses.replace(CONFIG.decoding, block_size=24)
    config = dataclasses.replace(CONFIG, decoding=decoding)
    [row] = rollout(lm, [Example("x", "7" * 11)], tmp_path / "fits", config, progress=False).read()
    assert len(row.prompt_ids + row.response_ids) == 24
    with pytest.raises(ValueError, match="has 13 tokens, but toy takes at most 12 with"):
        rollout(lm, [Example("x", "7" * 12)], tmp_path / "not", config, progress=False)


def test_the_longest_prompt_that_fits_is_decoded(lm: LanguageModel, tmp_path: Path) -> None:
    store = rollout(lm, [Example("x", "7" * 19)], tmp_path / "store", CONFIG, progress=False)
    assert len(store.read()[0].prompt_ids) == 20


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"decoding": dataclasses.replace(CONFIG.decoding, denoising_steps=4)}, "decoding.den"),
    ],
)
def test_a_store_of_another_rollout_is_refused(
    lm: LanguageModel, tmp_path: Path, change: dict[str, object], key: str
) -> None:
    rollout(lm, toy_examples(3), tmp_path / "store", CONFIG, progress=False)
    other = RolloutConfig(**{**vars(CONFIG), **change})
    with pytest.raises(ValueError, match=f"was made with {key}"):
        rollout(lm, toy_examples(3), tmp_path / "store", other, progress=False)
    with pytest.raises(ValueError, match="was made with num_prompts = 3, not 4"):
        rollout(lm, toy_examples(4), tmp_path / "store", CONFIG, progress=False)


def test_a_lost_rollout_is_an_error_that_names_its_prompt(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = TrajectoryStore.append
    monkeypatch.setattr(TrajectoryStore, "append", lambda self, rows: append(self, rows[:-1]))
    with pytest.raises(ValueError, match=r"2 rollouts were lost: toy/2, toy/4$"):
        rollout(lm, toy_examples(5), tmp_path / "store", CONFIG, progress=False)


def test_progress_counts_what_was_there(
    lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout(lm, toy_examples(5), tmp_path / "store", CONFIG, progress=False)
    assert capsys.readouterr() == ("", "")
    os.unlink(tmp_path / "store" / "shards" / "part-00000-000001.json")
    rollout(lm, toy_examples(5), tmp_path / "store", CONFIG)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "rollout: 3/5 prompts"
    assert last.startswith("rollout: 5 prompts in 0:00:0")


@pytest.mark.parametrize("name", ["batch_size", "shard_size"])
def test_sizes_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        dataclasses.replace(CONFIG, **{name: 0})
