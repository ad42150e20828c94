"""Trajectories come back from a store, which is that of one rollout."""

from __future__ import annotations

import dataclasses
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.store import SCHEMA, TrajectoryStore, hash_prompts
from t3d.core.trajectory import Trajectory
from tests.core.stores import MANIFEST, filled, numbers, part, row

TOKEN = st.integers(0, 2**31)


RESPONSE = st.lists(
    st.tuples(TOKEN, TOKEN, st.integers(-1, 63), st.floats(max_value=0, allow_nan=False, width=32)),
    min_size=1,
    max_size=12,
)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    ids, initial, steps, log_probs = (list(column) for column in zip(*draw(RESPONSE), strict=True))
    return Trajectory(
        prompt_id=draw(st.text(st.characters(codec="utf-8"))),
        prompt_ids=draw(st.lists(TOKEN, max_size=8)),
        response_ids=ids,
        initial_ids=initial,
        step_map=steps,
        log_probs=log_probs,
        num_response_tokens=draw(st.integers(1, len(ids))),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        block_size=draw(st.integers(1, 64)),
        answer=draw(st.none() | st.text(st.characters(codec="utf-8"))),
    )


@st.composite
def partitions(draw: st.DrawFn) -> list[list[tuple[int, Trajectory]]]:
    """Rows with distinct prompt indices in any order, cut into shards anywhere."""
    index = st.integers(0, 2**40)
    rows = draw(st.lists(st.tuples(index, trajectories()), unique_by=lambda row: row[0]))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(rows) - 1)))) if rows else [])
    bounds = [0, *cuts, len(rows)]
    return [rows[a:b] for a, b in pairwise(bounds) if a < b]


@given(partitions())
@settings(max_examples=30)
def test_any_rows_in_any_shards_come_back(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[tuple[int, Trajectory]]]
) -> None:
    path = tmp_path_factory.mktemp("store")
    store = TrajectoryStore.create(path, MANIFEST)
    for shard in shards:
        store.append(shard)
    rows = dict(row for shard in shards for row in shard)
    for opened in (store, TrajectoryStore.open(path)):
        assert opened.manifest == MANIFEST
        assert opened.read() == [rows[index] for index in sorted(rows)]
        assert opened.completed() == rows.keys()
        assert len(opened) == len(rows)
    shutil.rmtree(path)


def test_the_ecosystem_reads_shards_without_this_package(tmp_path: Path) -> None:
    store = filled(tmp_path, [2, 0])
    table = pq.read_table(part(store, 0))
    assert table.to_pylist() == [
        {"prompt_index": index} | dataclasses.asdict(trajectory)
        for index, trajectory in (row(2), row(0))
    ]
    assert table.column("log_probs").type.value_type == pa.float32()


def test_columns_are_those_of_a_trajectory() -> None:
    names = [field.name for field in dataclasses.fields(Trajectory)]
    assert SCHEMA.names == ["prompt_index", *names]


def test_a_prompt_held_twice(tmp_path: Path) -> None:
    store = filled(tmp_path, [0, 1], [1])
    assert len(store) == 2
    assert numbers(store) == [0, 1]


def test_resume_accepts_other_packages_and_keeps_the_manifest(tmp_path: Path) -> None:
    filled(tmp_path, [0])
    other = dataclasses.replace(MANIFEST, packages={"torch": "3"})
    store = TrajectoryStore.open_or_create(tmp_path, other)
    assert store.manifest == MANIFEST
    assert numbers(store) == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"model": "student"}, "model = 'teacher', not 'student'"),
        ({"weights_hash": None}, "weights_hash = 'ab', not None"),
        ({"num_prompts": 3}, "num_prompts = 100, not 3"),
        ({"prompt_set_hash": "c"}, "prompt_set_hash = "),
        (
            {"decoding": MANIFEST.decoding | {"temperature": 0.2}},
            "decoding.temperature = 0.1, not 0.2",
        ),
        (
            {"decoding": MANIFEST.decoding | {"top_k": 3}},
            "decoding.top_k = None, not 3",
        ),
    ],
)
def test_resume_refuses_other_settings(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    store = filled(tmp_path, [0])
    with pytest.raises(ValueError, match=f"was made with {re.escape(message)}"):
        TrajectoryStore.open_or_create(tmp_path, dataclasses.replace(MANIFEST, **change))
    assert numbers(store) == [0]


def test_prompts_hash_everything_in_order() -> None:
    sets: list[list[tuple[str, list[int], str | None]]] = [
        [],
        [("a", [1], None)],
        [("b", [1], None)],
        [("a", [2], None)],
        [("a", [1], "1")],
        [("a", [1], None), ("b", [2], None)],
        [("b", [2], None), ("a", [1], None)],
    ]
    assert len({hash_prompts(prompts) for prompts in sets}) == len(sets)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such trajectory store; make one with"):
        TrajectoryStore.open(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"not a trajectory store: it has no manifest\.json"):
        TrajectoryStore.open(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="no such trajectory store"):
        TrajectoryStore.open(tmp_path / "file")
    with pytest.raises(ValueError, match="file: exists already and is a file"):
        TrajectoryStore.open_or_create(tmp_path / "file", MANIFEST)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"format": 1}', "store format 1 is not supported, only 2; roll out again"),
        ('{"name": "app"}', "store format None is not supported"),
        ('{"format": 2, "seed": 0}', "missing or unknown keys: decoding, model, num"),
    ],
)
def test_foreign_manifests(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    for use in (TrajectoryStore.open, lambda p: TrajectoryStore.open_or_create(p, MANIFEST)):
        with pytest.raises(ValueError, match=f"manifest.json: {re.escape(message)}"):
            use(tmp_path)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"exists already and holds thesis\.tex, which is not of"):
        TrajectoryStore.open_or_create(tmp_path, MANIFEST)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_create_wants_a_new_place(tmp_path: Path) -> None:
    store = TrajectoryStore.create(tmp_path / "deep" / "store", MANIFEST)
    assert (len(store), store.read(), store.completed()) == (0, [], set())
    with pytest.raises(ValueError, match="holds a trajectory store already"):
        TrajectoryStore.create(store.path, MANIFEST)


def test_a_kill_before_the_manifest_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "manifest.json.77.partial").write_bytes(b'{"for')
    assert numbers(filled(tmp_path, [0])) == [0]
