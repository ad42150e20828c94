"""Shards that are cut off, damaged, foreign or another's."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.core.files import write_json
from t3d.core.store import TrajectoryStore
from tests.core.stores import MANIFEST, filled, mark, numbers, part, row


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
            pytest.raises(ValueError, match="another process writes as rank 1; wait until"),
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
        patch.setattr("t3d.core.shards.write_json", full)
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
        with pytest.raises(ValueError, match="part-00000-000000"):
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
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            use()
        assert "part-00000-000001" in str(error.value)
