"""The trajectory store: a manifest, and Parquet shards that are atomic and checksummed.

STORE/manifest.json                    what made the rows, written once
STORE/shards/part-RANK-NUMBER.parquet  rows; see `t3d.core.shards`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from t3d.core.files import check_output, make_directory, read_object, write_json
from t3d.core.shards import Shards, check_keys, list_of
from t3d.core.trajectory import Trajectory

FORMAT = 2


SCHEMA = pa.schema(
    [
        pa.field("prompt_index", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt_ids", list_of(pa.int64()), nullable=False),
        pa.field("response_ids", list_of(pa.int64()), nullable=False),
        pa.field("initial_ids", list_of(pa.int64()), nullable=False),
        pa.field("step_map", list_of(pa.int64()), nullable=False),
        pa.field("log_probs", list_of(pa.float32()), nullable=False),
        pa.field("num_response_tokens", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("block_size", pa.int64(), nullable=False),
        pa.field("answer", pa.string()),
    ]
)
"""Columns of a store: a trajectory's fields, and the index of its prompt in the prompt set."""

MANIFEST = "manifest.json"
_SHARDS = "shards"


@dataclass(frozen=True)
class Manifest:
    """Everything that determines a store's rows; runs that differ in it never share a store.

    Only `packages` may differ.
    """

    prompt_set_hash: str
    """SHA-256 over ids, token ids and answers of all prompts; see `hash_prompts`."""
    num_prompts: int
    """Number of rows of the store when it is complete."""
    decoding: dict[str, Any]
    """Settings with which the teacher decodes, as JSON."""
    model: str
    """The teacher's path or name."""
    weights_hash: str | None
    """SHA-256 of the teacher's weights; None for weights that only lived in memory."""
    seed: int
    packages: dict[str, str]
    """Versions of Python and packages, for the record; they may differ between runs."""
    dtype: str = "float32"
    """Number format in which the teacher decoded; stores of earlier versions, which do not name it,
    are float32."""

    def differences(self, other: Manifest) -> Iterator[tuple[str, Any, Any]]:
        """Identity keys (dotted) with the two values that differ."""
        ours, theirs = self._identity(), other._identity()
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                yield key, ours.get(key), theirs.get(key)

    def _identity(self) -> dict[str, Any]:
        row = asdict(self)
        del row["packages"]
        decoding = row.pop("decoding")
        return row | {f"decoding.{key}": value for key, value in decoding.items()}


def hash_prompts(prompts: Sequence[tuple[str, list[int], str | None]]) -> str:
    """sha256 over (id, token ids, answer) of a prompt set, in order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


class TrajectoryStore:
    """Append-only rows of (prompt index, Trajectory); every shard is checksummed."""

    def __init__(self, path: Path, manifest: Manifest, rank: int = 0, world_size: int = 1) -> None:
        """Use `create`, `open` or `open_or_create` instead."""
        self.path = path
        self.manifest = manifest
        self.shards = Shards(path / _SHARDS, SCHEMA, rank=rank, world_size=world_size)

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> TrajectoryStore:
        """Create an empty store.

        Raises:
            ValueError: if something lies at `path` already.
        """
        if (path / MANIFEST).exists():
            raise ValueError(f"{path}: holds a trajectory store already; choose another directory")
        return cls.open_or_create(path, manifest)

    @classmethod
    def open(cls, path: Path) -> TrajectoryStore:
        """Open an existing store.

        Raises:
            ValueError: if there is none, or not one of this format.
        """
        if not path.is_dir():
            raise ValueError(f"{path}: no such trajectory store; make one with `t3d rollout`")
        file = path / MANIFEST
        if not file.exists():
            raise ValueError(f"{path}: not a trajectory store: it has no {MANIFEST}")
        document = read_object(file)
        found = document.pop("format", None)
        if found != FORMAT:
            raise ValueError(
                f"{file}: store format {found!r} is not supported, only {FORMAT}; "
                "roll out again or use the version of t3d that wrote it"
            )
        document.setdefault("dtype", "float32")
        check_keys(file, document, {field.name for field in fields(Manifest)})
        return cls(path, Manifest(**document))

    @classmethod
    def open_or_create(
        cls, path: Path, manifest: Manifest, *, rank: int = 0, world_size: int = 1
    ) -> TrajectoryStore:
        """Open a store to continue it, or create one; removes files that killed runs left behind.

        Args:
            path: the store's directory.
            manifest: what will make the rows.
            rank: number of this process.
            world_size: number of processes that append at the same time.

        Raises:
            ValueError: as `check_output` does.
            ValueError: if the store was made with another manifest.
        """
        if not (path / MANIFEST).exists():
            check_output(path, MANIFEST)
            make_directory(path)
            write_json(path / MANIFEST, {"format": FORMAT} | asdict(manifest))
        store = cls.open(path)
        difference = next(store.manifest.differences(manifest), None)
        if difference is not None:
            key, there, wanted = difference
            raise ValueError(
                f"{path}: was made with {key} = {there!r}, not {wanted!r}; "
                "choose another directory or the settings it was made with"
            )
        store = cls(path, store.manifest, rank, world_size)
        store.shards.prepare()
        return store

    def append(self, rows: Sequence[tuple[int, Trajectory]]) -> None:
        """Write one shard of (prompt index, trajectory).

        Raises:
            ValueError: if the system refuses to write; the store is then as before.
        """
        self.shards.append([{"prompt_index": index} | asdict(row) for index, row in rows])

    def __len__(self) -> int:
        """Rows in the store."""
        return len(self.completed())

    def completed(self) -> set[int]:
        """Prompt indices of the rows in the store; checks every checksum."""
        return self.shards.distinct("prompt_index")

    def read_complete(self) -> list[Trajectory]:
        """`read`, of a store that holds a row for every prompt.

        Raises:
            ValueError: as `read`, and for a store that lacks rows.
        """
        rows, wanted = self.read(), self.manifest.num_prompts
        if len(rows) != wanted:
            raise ValueError(
                f"{self.path}: holds {len(rows)} of {wanted} trajectories; give the same "
                "`t3d rollout` command again to complete it"
            )
        return rows

    def read(self) -> list[Trajectory]:
        """All rows in the order of their prompts.

        Where two runs decoded the same prompt at the same time, the row of the first shard counts.

        Raises:
            ValueError: for a shard that is missing, damaged or foreign.
        """
        rows: dict[int, Trajectory] = {}
        for _, table in self.shards.tables():
            for row in table.to_pylist():
                rows.setdefault(row.pop("prompt_index"), Trajectory(**row))
        return [rows[index] for index in sorted(rows)]
