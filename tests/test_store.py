from __future__ import annotations

import dataclasses
import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.provenance import hash_file, write_json
from t3d.store import SCHEMA, Manifest, StoreError, TrajectoryStore, hash_prompts
from t3d.trajectory import Trajectory

MANIFEST = Manifest(
    prompt_set_hash=hash_prompts([("a", [1, 2], None)]),
    num_prompts=100,
    decoding={"block_size": 4, "temperature": 0.1, "remasking": "sequential"},
    model="teacher",
    weights_hash="ab",
    seed=0,
    packages={"torch": "2.13"},
)
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


def row(number: int) -> tuple[int, Trajectory]:
    """A row whose contents tell its number."""
    response, initial = [number, number + 1, 7, 9], [9, 5, 9, 9]
    steps, logs = [0, 1, 1, -1], [-0.5, -0.25, -1.0, 0.0]
    return number, Trajectory(
        f"p/{number}", [number], response, initial, steps, logs, 3, "stop", 4, "42"
    )


def filled(path: Path, *shards: list[int]) -> TrajectoryStore:
    store = TrajectoryStore.open_or_create(path, MANIFEST)
    for numbers in shards:
        store.append([row(number) for number in numbers])
    return store


def part(store: TrajectoryStore, number: int, rank: int = 0) -> Path:
    return store.path / "shards" / f"part-{rank:05d}-{number:06d}.parquet"


def mark(shard: Path, rows: int) -> None:
    """Commit whatever the file holds."""
    write_json(shard.with_suffix(".json"), {"rows": rows, "sha256": hash_file(shard)})


def numbers(store: TrajectoryStore) -> list[int]:
    return [trajectory.response_ids[0] for trajectory in store.read()]


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


@pytest.mark.parametrize("point", ["shard.partial", "shard", "mark.partial"])
def test_a_kill_anywhere_in_an_append_costs_that_shard_alone(tmp_path: Path, point: str) -> None:
    store = filled(tmp_path, [0, 1], [2, 3])
    second = part(store, 1)
    sidecar = second.with_suffix(".json")
    if point == "mark.partial":
        sidecar.rename(sidecar.with_name(sidecar.name + ".77.partial"))
    else:
        sidecar.unlink()
    if point == "shard.partial":
        second.rename(second.with_name(second.name + ".77.partial"))
    assert numbers(TrajectoryStore.open(tmp_path)) == [0, 1]
    resumed = TrajectoryStore.open_or_create(tmp_path, MANIFEST)
    assert len(list((tmp_path / "shards").iterdir())) == 2
    assert resumed.completed() == {0, 1}
    resumed.append([row(2), row(3)])
    assert numbers(resumed) == [0, 1, 2, 3]


def test_ranks_keep_out_of_each_others_way(tmp_path: Path) -> None:
    filled(tmp_path, [0])
    for rank in range(3):
        orphan = tmp_path / "shards" / f"part-{rank:05d}-000009.parquet"
        orphan.write_bytes(b"being written")
    (tmp_path / "shards" / "notes.parquet").write_bytes(b"the user's")
    second = TrajectoryStore.open_or_create(tmp_path, MANIFEST, rank=1, world_size=2)
    second.append([row(1)])
    assert sorted(file.name for file in (tmp_path / "shards").glob("*.parquet")) == [
        "notes.parquet",
        "part-00000-000000.parquet",
        "part-00000-000009.parquet",
        "part-00001-000000.parquet",
        "part-00002-000009.parquet",
    ]
    first = TrajectoryStore.open_or_create(tmp_path, MANIFEST, rank=0, world_size=2)
    assert not part(first, 9).exists()
    assert not part(first, 9, rank=2).exists()
    assert numbers(first) == [0, 1]


def test_who_writes_as_a_rank_is_alone_and_loses_nothing_to_others(tmp_path: Path) -> None:
    second = TrajectoryStore.open_or_create(tmp_path, MANIFEST, rank=1, world_size=2)
    unfinished = [part(second, 9, rank=1), part(second, 9, rank=3)]
    assert second.shards.touched() == 0
    with second.shards.writing():
        since = second.shards.touched()
        second.shards.touch()
        assert second.shards.touched() > since > 0
        for shard in unfinished:
            shard.write_bytes(b"being written")
        # One process goes on with what two began, of which one is still alive.
        alone = TrajectoryStore.open_or_create(tmp_path, MANIFEST)
        assert [shard.exists() for shard in unfinished] == [True, False]
        with alone.shards.writing():
            alone.append([row(0)])
        same = TrajectoryStore(tmp_path, MANIFEST, rank=1, world_size=2)
        with (
            pytest.raises(StoreError, match="another process writes as rank 1; wait until"),
            same.shards.writing(),
        ):
            raise AssertionError
        second.append([row(1)])
    TrajectoryStore.open_or_create(tmp_path, MANIFEST)
    assert not unfinished[0].exists()
    assert numbers(alone) == [0, 1]


def test_the_gap_of_a_removed_shard_is_filled_beside_the_others(tmp_path: Path) -> None:
    store = filled(tmp_path, [0], [1], [2])
    part(store, 1).unlink()
    part(store, 1).with_suffix(".json").unlink()
    assert store.completed() == {0, 2}
    store.append([row(1)])
    assert numbers(store) == [0, 1, 2]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """What a full disk does to a write, for files over `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 40, 500])
def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path, size: int) -> None:
    store = filled(tmp_path, [0])
    before = sorted(file.name for file in (tmp_path / "shards").iterdir())
    with (
        file_size_limit(size),
        pytest.raises(ValueError, match=r"parquet: cannot be written: File too large; free"),
    ):
        store.append([row(1)])
    assert sorted(file.name for file in (tmp_path / "shards").iterdir()) == before
    assert numbers(store) == [0]
    store.append([row(1)])
    assert numbers(store) == [0, 1]


def test_a_shard_whose_mark_cannot_be_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, [0])

    def full(path: Path, value: Any) -> None:
        raise ValueError(f"{path}: cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("t3d.shards.write_json", full)
        with pytest.raises(ValueError, match="No space left"):
            store.append([row(1)])
    assert part(store, 1).exists()
    assert numbers(store) == [0]
    store.append([row(2)])
    assert numbers(store) == [0, 2]


def test_a_store_whose_directory_went_away(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "shards")
    (tmp_path / "store" / "shards").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be written: Not a directory"):
        store.append([row(1)])


def _same_json(one: bytes, other: bytes) -> bool:
    """Whether only white space differs."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@given(st.data())
def test_any_damage_to_a_shard_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("store")
    shard = part(filled(path, [0, 1], [2]), 0)
    file = data.draw(st.sampled_from([shard, shard.with_suffix(".json")]))
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 2))
    if data.draw(st.booleans()):
        flipped = content[cut] ^ (1 << data.draw(st.integers(0, 6)))
        damaged = content[:cut] + bytes([flipped]) + content[cut + 1 :]
    else:
        damaged = content[:cut]
    file.write_bytes(damaged)
    store = TrajectoryStore.open(path)
    if _same_json(damaged, content):
        assert numbers(store) == [0, 1, 2]
    else:
        with pytest.raises(StoreError, match="part-00000-000000"):
            store.read()
    shutil.rmtree(path)


def _truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-20])


def _text(shard: Path) -> None:
    shard.write_bytes(b"prompt,response\n")
    mark(shard, 1)


def _extra_column(shard: Path) -> None:
    table = pq.read_table(shard)
    pq.write_table(table.append_column("reward", pa.array([1.0])), shard)
    mark(shard, 1)


def _no_steps(shard: Path) -> None:
    pq.write_table(pq.read_table(shard).drop_columns(["step_map"]), shard)
    mark(shard, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "damaged: its checksum is not the recorded one; remove it and part-0"),
        (Path.unlink, "cannot be read: No such file or directory; remove it"),
        (_text, "not a Parquet file"),
        (_extra_column, "missing or unknown columns: reward (double)"),
        (_no_steps, "missing or unknown columns: step_map (list<"),
        (lambda shard: mark(shard, 2), "1 rows, 2 recorded"),
        (lambda shard: write_json(shard.with_suffix(".json"), {"rows": 1}), "unknown keys: sha256"),
    ],
)
def test_damaged_and_foreign_shards(tmp_path: Path, damage: Any, message: str) -> None:
    store = filled(tmp_path, [0], [1])
    damage(part(store, 1))
    for use in (store.read, store.completed):
        with pytest.raises(StoreError, match=re.escape(message)) as error:
            use()
        assert "part-00000-000001" in str(error.value)


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
    with pytest.raises(StoreError, match=f"was made with {re.escape(message)}"):
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
    with pytest.raises(StoreError, match="no such trajectory store; make one with"):
        TrajectoryStore.open(tmp_path / "absent")
    with pytest.raises(StoreError, match=r"not a trajectory store: it has no manifest\.json"):
        TrajectoryStore.open(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="no such trajectory store"):
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
        with pytest.raises(StoreError, match=f"manifest.json: {re.escape(message)}"):
            use(tmp_path)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"exists already and holds thesis\.tex, which is not of"):
        TrajectoryStore.open_or_create(tmp_path, MANIFEST)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_create_wants_a_new_place(tmp_path: Path) -> None:
    store = TrajectoryStore.create(tmp_path / "deep" / "store", MANIFEST)
    assert (len(store), store.read(), store.completed()) == (0, [], set())
    with pytest.raises(StoreError, match="holds a trajectory store already"):
        TrajectoryStore.create(store.path, MANIFEST)


def test_a_kill_before_the_manifest_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "manifest.json.77.partial").write_bytes(b'{"for')
    assert numbers(filled(tmp_path, [0])) == [0]
