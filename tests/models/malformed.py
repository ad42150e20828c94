"""Ways to damage a checkpoint directory; each takes the directory."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from t3d.models import wrap
from t3d.models.families import FAMILIES
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny

Damage = Callable[[Path], object]
Change = Callable[[Any], object]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


FITTING = "fitting"


def save_families(directory: Path) -> Path:
    """A checkpoint of every family, by its name, whose tokenizer is larger than its vocabulary of
    64, and one of SDAR that loads."""
    examples = get_task("mini_gsm").examples("train", 100)
    tokenizer = train_tokenizer([e.question for e in examples], vocab_size=300)
    sizes = dict.fromkeys(FAMILIES, 64) | {FITTING: len(tokenizer)}
    for name, size in sizes.items():
        family = name if name in FAMILIES else "sdar"
        model = tiny(family=family, vocab_size=size, dtype=torch.float32)
        wrap(model, tokenizer, "memory").save(directory / name)
    return directory


def marker(directory: Path) -> Path:
    """What a payload writes when it runs."""
    return directory.parent / "ran"


class Payload:
    """Unpickling it writes the marker."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (marker(self.directory), "")


def pickled(file: str) -> Damage:
    return lambda d: (d / file).write_bytes(pickle.dumps(Payload(d), protocol=4))


def torch_saved(file: str) -> Damage:
    """A pickle within a zip archive."""
    return lambda d: torch.save({"weight": Payload(d)}, d / file)


def code(file: str) -> Damage:
    """A module that writes the marker when it is imported."""
    return lambda d: (d / file).write_text(f"open({str(marker(d))!r}, 'w').close()\n")


def every(*damages: Damage) -> Damage:
    return lambda d: [damage(d) for damage in damages]


def write(file: str, content: str | bytes) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda d: (d / file).write_bytes(data)


def remove(*files: str) -> Damage:
    return lambda d: [(d / file).unlink() for file in files]


def cut(file: str, num: int) -> Damage:
    """All but the last `num` bytes."""
    return lambda d: (d / file).write_bytes((d / file).read_bytes()[:-num])


def lengthen(file: str) -> Damage:
    return lambda d: (d / file).write_bytes((d / file).read_bytes() + b"\0")


def link(file: str, target: str) -> Damage:
    """The file moves to `target`, relative to the directory, and a link takes its place."""

    def damage(directory: Path) -> None:
        place = Path(os.path.normpath(directory / target))
        place.parent.mkdir(parents=True, exist_ok=True)
        (directory / file).rename(place)
        (directory / file).symlink_to(place)

    return damage


def edit(file: str, change: Change) -> Damage:
    def damage(directory: Path) -> None:
        document = json.loads((directory / file).read_text())
        change(document)
        (directory / file).write_text(json.dumps(document))

    return damage


def config(**values: Any) -> Damage:
    return edit("config.json", lambda document: document.update(values))


def drop(*keys: str) -> Damage:
    return edit("config.json", lambda document: [document.pop(key) for key in keys])


def tensors(change: Change, file: str = WEIGHTS) -> Damage:
    def damage(directory: Path) -> None:
        state = load_file(directory / file)
        change(state)
        save_file(state, directory / file, metadata={"format": "pt"})

    return damage


def split_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes of its tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def header(change: Change) -> Damage:
    """Another header before the same bytes."""

    def damage(directory: Path) -> None:
        document, body = split_header((directory / WEIGHTS).read_bytes())
        change(document)
        text = json.dumps(document).encode()
        (directory / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + body)

    return damage


def entry(name: str, **values: Any) -> Damage:
    return header(lambda document: document[name].update(values))


def header_length(length: int) -> Damage:
    return lambda d: (d / WEIGHTS).write_bytes(
        length.to_bytes(8, "little") + (d / WEIGHTS).read_bytes()[8:]
    )


def shard(directory: Path) -> None:
    """The same checkpoint in two shards with an index."""
    state = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for file, part in zip(SHARDS, (names[:5], names[5:]), strict=True):
        save_file({n: state[n] for n in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def sharded(*damages: Damage) -> Damage:
    return every(shard, *damages)


def mapped(**values: Any) -> Damage:
    """Other files for tensors in a sharded checkpoint's index; dots are written `__`."""
    files = {name.replace("__", "."): file for name, file in values.items()}
    return sharded(edit(INDEX, lambda document: document["weight_map"].update(files)))
