"""A store whose rows tell their numbers."""

from __future__ import annotations

from pathlib import Path

from t3d.core.files import hash_file, write_json
from t3d.core.store import Manifest, TrajectoryStore, hash_prompts
from t3d.core.trajectory import Trajectory

MANIFEST = Manifest(
    prompt_set_hash=hash_prompts([("a", [1, 2], None)]),
    num_prompts=100,
    decoding={"block_size": 4, "temperature": 0.1, "remasking": "sequential"},
    model="teacher",
    weights_hash="ab",
    seed=0,
    packages={"torch": "2.13"},
)


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
