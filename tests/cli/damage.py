"""Ways to damage an input file or folder, as plain data: (path, kind, number, value)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from t3d.core.files import hash_file
from tests.models.malformed import split_header

Damage = tuple[str, str, int, Any]
"""Where, how, which of the places there (modulo how many there are), and what comes there."""

TREES = (".json", ".jsonl", ".yaml", ".safetensors")
"""Files with leaves."""


def slots(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree, as a container and a key."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in list(keys):
        yield node, key
        yield from slots(node[key])


def _change(tree: Any, change: Callable[[Any, Any], None], number: int) -> None:
    places = list(slots(tree))
    if places:
        change(*places[number % len(places)])


def _edit(path: Path, change: Callable[[Any, Any], None], number: int) -> None:
    """Change one place of a file's tree."""
    data, kind = path.read_bytes(), path.suffix
    if kind == ".safetensors":
        tree, body = split_header(data)
        _change(tree, change, number)
        header = json.dumps(tree).encode()
        data = len(header).to_bytes(8, "little") + header + body
    elif kind == ".yaml":
        tree = yaml.safe_load(data)
        _change(tree, change, number)
        data = yaml.safe_dump(tree).encode("utf-8", "surrogatepass")
    elif kind == ".jsonl":
        rows = [json.loads(line) for line in data.decode().splitlines()]
        _change(rows, change, number)
        data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    else:
        tree = json.loads(data)
        _change(tree, change, number)
        data = json.dumps(tree).encode()
    path.write_bytes(data)


def _leaf(path: Path, number: int, value: Any) -> None:
    def put(container: Any, key: Any) -> None:
        container[key] = value

    _edit(path, put, number)


def _drop(path: Path, number: int, value: Any) -> None:
    def delete(container: Any, key: Any) -> None:
        del container[key]

    _edit(path, delete, number)


def _add(path: Path, number: int, value: Any) -> None:
    def insert(container: Any, key: Any) -> None:
        if isinstance(container, dict):
            container[str(value)] = container[key]
        else:
            container.insert(key, value)

    _edit(path, insert, number)


def _bytes(path: Path, number: int, value: Any) -> None:
    data = bytearray(path.read_bytes())
    start = number % (len(data) + 1)
    data[start : start + len(value)] = value.encode("latin-1", "replace")
    path.write_bytes(data)


def _column(path: Path, number: int, value: Any) -> None:
    """One column of a Parquet file becomes another, with the mark of a store made anew."""
    table = pq.read_table(path)
    name = table.column_names[number % table.num_columns]
    rows = table.to_pylist()
    column: Any = [row[name] for row in rows]
    if value is None:
        table = table.drop_columns([name])
    elif value == "type":
        text = pa.array([str(x) for x in column])
        table = table.set_column(table.column_names.index(name), name, text)
    else:
        kind = table.schema.field(name).type
        nested = pa.types.is_list(kind)
        try:
            new = pa.array([[value] if nested else value, *column[1:]], type=kind)
        except (pa.ArrowException, TypeError, OverflowError):
            new = pa.nulls(len(column), kind)
        table = table.set_column(table.column_names.index(name), name, new)
    pq.write_table(table, path)
    mark = path.with_suffix(".json")
    if mark.is_file():
        mark.write_text(json.dumps({"rows": len(table), "sha256": hash_file(path)}))


def _remove(path: Path, number: int, value: Any) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _other_kind(path: Path, number: int, value: Any) -> None:
    """A folder where a file is, or a file where a folder is."""
    was_folder = path.is_dir()
    _remove(path, number, value)
    if was_folder:
        path.write_text("")
    else:
        path.mkdir()


def _link(path: Path, number: int, value: Any) -> None:
    """A link to itself, to nothing, or to the thing itself outside of its folder."""
    if number % 3 == 0:
        path.rename(path.parent / "moved")
        path.symlink_to("moved")
        return
    _remove(path, number, value)
    path.symlink_to(path.name if number % 3 == 1 else "nothing")


KINDS: dict[str, Callable[[Path, int, Any], None]] = {
    "leaf": _leaf,
    "drop": _drop,
    "add": _add,
    "bytes": _bytes,
    "cut": lambda path, number, value: os.truncate(path, number % (path.stat().st_size + 1)),
    "text": lambda path, number, value: _text(path, value),
    "column": _column,
    "remove": _remove,
    "other kind": _other_kind,
    "link": _link,
    "pipe": lambda path, number, value: (_remove(path, number, value), os.mkfifo(path))[1],
}


def _text(path: Path, value: Any) -> None:
    path.write_bytes(str(value).encode("utf-8", "surrogatepass"))


def apply(root: Path, damage: Damage) -> None:
    """Damage a file below `root`; what an earlier damage took away stays away."""
    name, kind, number, value = damage
    path = root / name
    if (
        not path.exists()
        or path.is_fifo()
        or (path.is_dir() and kind not in ("remove", "other kind", "link"))
    ):
        return
    if kind in ("leaf", "drop", "add"):
        try:
            KINDS[kind](path, number, value)
        except (ValueError, TypeError, yaml.YAMLError, RecursionError):
            # It is no tree any more, after an earlier damage.
            return
    elif kind == "column":
        try:
            _column(path, number, value)
        except (pa.ArrowException, OSError):
            return
    else:
        KINDS[kind](path, number, value)
