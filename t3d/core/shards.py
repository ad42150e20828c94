"""Rows in Parquet shards, each of which exists as a whole or does not count.

    part-RANK-NUMBER.parquet  rows; `datasets` and `pandas` read them directly
    part-RANK-NUMBER.json     rows and sha256: the mark that the shard counts
    part-RANK.lock            held by the process that writes as this rank, and touched by it

The mark is written after its shard. So a Parquet file without a mark, which no process is writing,
was left by a killed run: it is never read, and a resumed run removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from t3d.core.files import make_directory, read_file, read_object, write_bytes, write_json
from t3d.core.progress import bar, stage

_PART = re.compile(r"part-(\d{5})-(\d{6})\.(parquet|json)(\.\d+\.partial)?")


def list_of(item: pa.DataType) -> pa.DataType:
    """Lists of `item` without nulls."""
    return pa.list_(pa.field("element", item, nullable=False))


@dataclass(frozen=True)
class Shards:
    """Append-only rows of one schema in a directory; every shard is checksummed."""

    directory: Path
    schema: pa.Schema
    rank: int = 0
    """Number of this process, which is in the names of the shards that it writes."""
    world_size: int = 1
    """Number of processes that append at the same time."""

    def prepare(self) -> None:
        """Make the directory, and remove what killed runs of this rank left half written.

        Raises:
            ValueError: if it cannot be made.
        """
        make_directory(self.directory)
        committed = set(self.paths())
        for file in sorted(self.directory.iterdir()):
            part = _PART.fullmatch(file.name)
            if part is None or int(part[1]) % self.world_size != self.rank:
                continue
            if part[4] or file.with_suffix(".parquet") not in committed:
                # An earlier run may have had more ranks, some of which may still be alive.
                lock = self._lock_file(int(part[1]))
                with _lock(lock) if lock.exists() else nullcontext(True) as free:
                    if free:
                        file.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of this rank; every `append` beside which others may start needs it.

        Raises:
            ValueError: while another process writes as this rank, or if nothing can be written.
        """
        with _lock(self._lock_file(self.rank)) as free:
            if not free:
                raise ValueError(
                    f"{self.directory}: another process writes as rank {self.rank}; "
                    "wait until it is done, or stop it"
                )
            yield

    def touch(self) -> None:
        """Show other processes, while `writing`, that this one makes progress."""
        os.utime(self._lock_file(self.rank))

    def touched(self) -> float:
        """Time of the last `touch` or start of `writing` by any process; 0 if there was none."""
        return max((file.stat().st_mtime for file in self.directory.glob("*.lock")), default=0.0)

    def _lock_file(self, rank: int) -> Path:
        return self.directory / f"part-{rank:05d}.lock"

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write one shard.

        Raises:
            ValueError: if the system refuses to write; all is then as before.
        """
        assert rows
        data = to_parquet(rows, self.schema)
        prefix = f"part-{self.rank:05d}-"
        own = [s.stem for s in self.paths() if s.stem.startswith(prefix)]
        number = 1 + max((int(stem.removeprefix(prefix)) for stem in own), default=-1)
        shard = self.directory / f"{prefix}{number:06d}.parquet"
        write_bytes(shard, data)
        mark = {"rows": len(rows), "sha256": hashlib.sha256(data).hexdigest()}
        write_json(shard.with_suffix(".json"), mark)

    def __len__(self) -> int:
        """Rows in all shards."""
        return sum(_read_mark(shard)["rows"] for shard in self.paths())

    def distinct(self, column: str) -> set[Any]:
        """Values of a column, after every shard was checked as `tables` does."""
        return {value for _, table in self.tables() for value in table.column(column).to_pylist()}

    def wait(
        self, column: str, wanted: int, unit: str, *, patience: float = math.inf, progress: bool
    ) -> None:
        """Wait until all processes together have written rows with `wanted` values of a column.

        Raises:
            ValueError: if for `patience` seconds none of them finishes anything.
        """
        last, since = None, time.monotonic()
        with stage("waiting for other ranks"), bar("waiting", wanted, unit, show=progress) as count:
            # Counting by marks is quick, but counts a row twice that two runs wrote; only when it
            # says that all are there the rows themselves are read.
            while (num := len(self)) < wanted or (num := len(self.distinct(column))) < wanted:
                count.advance(num - count.done)
                if (signs := (num, self.touched())) != last:
                    last, since = signs, time.monotonic()
                elif time.monotonic() - since > patience:
                    raise ValueError(
                        f"{self.directory.parent}: other ranks have finished nothing for "
                        f"{patience:g} seconds, and {num} of {wanted} {unit}s are there; start the "
                        "same command again, with any number of processes"
                    )
                time.sleep(0.2)

    def paths(self) -> list[Path]:
        """Parquet files that count, by rank and number."""
        marks = self.directory.glob("part-*.json")
        return sorted(mark.with_suffix(".parquet") for mark in marks)

    def tables(self) -> Iterator[tuple[Path, pa.Table]]:
        """Every shard's rows, after its checksum and columns were checked.

        Raises:
            ValueError: for a shard that is missing, damaged or foreign.
        """
        for shard in self.paths():
            yield shard, self._read(shard)

    def _read(self, shard: Path) -> pa.Table:
        mark = _read_mark(shard)
        remedy = f"remove it and {shard.stem}.json and run the same again to fill the gap"
        try:
            data = read_file(shard)
        except OSError as error:
            raise ValueError(f"{shard}: cannot be read: {error.strerror}; {remedy}") from None
        if hashlib.sha256(data).hexdigest() != mark["sha256"]:
            raise ValueError(f"{shard}: damaged: its checksum is not the recorded one; {remedy}")
        try:
            table = pq.read_table(pa.BufferReader(data))
        except pa.ArrowException as error:
            raise ValueError(f"{shard}: not a Parquet file ({error}); {remedy}") from None
        if not table.schema.equals(self.schema):
            wrong = sorted(_columns(table.schema) ^ _columns(self.schema)) or ["order or nulls"]
            raise ValueError(f"{shard}: missing or unknown columns: {', '.join(wrong)}; {remedy}")
        if table.num_rows != mark["rows"]:
            raise ValueError(f"{shard}: {table.num_rows} rows, {mark['rows']} recorded; {remedy}")
        return table


def to_parquet(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> bytes:
    """A compressed Parquet file of rows."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="zstd")
    return buffer.getvalue().to_pybytes()


def check_keys(file: Path, document: dict[str, Any], expected: set[str]) -> None:
    """Raise ValueError unless a document has these keys exactly."""
    if document.keys() != expected:
        wrong = ", ".join(sorted(document.keys() ^ expected))
        raise ValueError(f"{file}: missing or unknown keys: {wrong}")


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Try to lock a file; yields whether that worked. The system unlocks it when a process dies."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        free = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            # A file system without locks cannot tell whether another process holds one.
            pass
        yield free


def _read_mark(shard: Path) -> dict[str, Any]:
    """The mark of a shard, an object with `rows` and `sha256`."""
    file = shard.with_suffix(".json")
    mark = read_object(file)
    check_keys(file, mark, {"rows", "sha256"})
    return mark


def _columns(schema: pa.Schema) -> set[str]:
    return {f"{field.name} ({field.type})" for field in schema}
