"""The benchmarks' data: where it lies, that it is what it should be, and how it gets there.

A data folder holds the files of `FILES` as JSONL. The user's own is taken as it is; the cache,
which `download` fills from the Hub, is checked against the digests below. Of the authors' training
sets we have none: they are taken as the Hub has them, and each line's `source` names the revision.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from t3d.core.files import check_output, make_directory, write_bytes
from t3d.tasks import convert
from t3d.tasks.records import Needs, Record, content_digest, read_json_lines, read_records, to_jsonl
from t3d.tasks.upstream import upstream_records, upstream_rows


@dataclass(frozen=True)
class Source:
    """Where a file of a data folder comes from."""

    dataset: str
    repository: str
    """Repository of data sets on the Hub."""
    revision: str
    paths: tuple[str, ...]
    """Paths of the files within the repository."""
    convert: Callable[..., list[Record]]
    """Function that makes records from the rows of each path, in order."""
    digest: str | None
    """Digest of the file, `content_digest(read_records(path, {}))`; None where nobody took it."""


def _mbpp(parts: Sequence[str], split: str, digest: str) -> Source:
    paths = [
        f"{edition}/{part}-00000-of-00001.parquet"
        for edition in ("full", "sanitized")
        for part in parts
    ]

    def join(*rows: convert.Rows, source: str) -> list[Record]:
        full, sanitized = rows[: len(parts)], rows[len(parts) :]
        return convert.mbpp([*chain(*full)], [*chain(*sanitized)], split=split, source=source)

    revision = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
    return Source("mbpp", "google-research-datasets/mbpp", revision, tuple(paths), join, digest)


def _gsm8k(split: str, digest: str) -> Source:
    return Source(
        "gsm8k",
        "openai/gsm8k",
        "740312add88f781978c0658806c59bc2815b9866",
        (f"main/{split}-00000-of-00001.parquet",),
        partial(convert.gsm8k, split=split),
        digest,
    )


def _authors(name: str) -> Source:
    """A training set of T3D's authors, which no benchmark reads: a task or prompts by its path."""
    convert = partial(upstream_records, dataset=name.lower(), split="train")
    return Source(name.lower(), f"Gen-Verse/{name}", "main", (f"train/{name}.json",), convert, None)


FILES = {
    "gsm8k_train.jsonl": _gsm8k(
        "train", "5f82c038ab35554db5fa8d8f5f6b1490fe154f39edbd0c4c060df3f2e4bcad35"
    ),
    "gsm8k_test.jsonl": _gsm8k(
        "test", "528d87098c3214e94afc8a8b32f4560097c1c903ae7b651ef5fe98e942db5cd9"
    ),
    "math500.jsonl": Source(
        "math500",
        "HuggingFaceH4/MATH-500",
        "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        ("test.jsonl",),
        convert.math500,
        "5b02d7f2a76bb1911ff8bf495744de1a0949682c145484e49ce948f011cb00ee",
    ),
    "humaneval.jsonl": Source(
        "humaneval",
        "openai/openai_humaneval",
        "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        ("openai_humaneval/test-00000-of-00001.parquet",),
        convert.humaneval,
        "a96d50bbfa5062499a3813ae65d81bdf7f7300aa269ddf6cf16b2eb43d5c78b0",
    ),
    "mbpp_train.jsonl": _mbpp(
        ("prompt", "train", "validation"),
        "train",
        "fd280392bc7e85fa3483a76f4f0388eb44cbe0f652eb4151dbc847edd7bf1d04",
    ),
    "mbpp_test.jsonl": _mbpp(
        ("test",), "test", "adf7d19a0384655e96349e924f3d600e5f5dac2b0f13aa46eb991ee3712e0db5"
    ),
    "math_train.jsonl": _authors("MATH_train"),
    "primeintellect.jsonl": _authors("PrimeIntellect"),
}
DATASETS = tuple(dict.fromkeys(source.dataset for source in FILES.values()))
"""What can be downloaded."""


def data_folder() -> Path:
    """The cache: `$T3D_DATA`, or `~/.cache/t3d/data`."""
    return Path(os.environ.get("T3D_DATA") or Path.home() / ".cache" / "t3d" / "data")


def load_records(file: str, data: Path | None, needs: Needs) -> list[Record]:
    """The records of one of `FILES`.

    Args:
        data: the user's folder, whose content is theirs; None for the checked cache.
        needs: as for `read_records`.

    Raises:
        ValueError: for a missing file, one that is not as it should be, or another content.
    """
    path = (data or data_folder()) / file
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such file; run `t3d data download {FILES[file].dataset}` "
            "or give --data FOLDER"
        )
    records = read_records(path, needs)
    if data is None:
        _check(path, records)
    return records


def _check(path: Path, records: Sequence[Record]) -> None:
    wanted, found = FILES[path.name].digest, content_digest(records)
    if wanted not in (None, found):
        raise ValueError(
            f"{path}: its content has the digest {found}, not {wanted}; "
            f"delete it and run `t3d data download {FILES[path.name].dataset}`"
        )


def download(
    names: Sequence[str], folder: Path | None = None, *, progress: bool = True
) -> list[Path]:
    """Fetch data sets from the Hub and write them as a data folder, one whole file at a time.

    A file that is there already is checked and kept.

    Args:
        names: some of `DATASETS`.
        folder: the cache by default.

    Raises:
        ValueError: for an unknown name, a Hub that cannot be reached, or another content than
            the one that the digests were taken of.
    """
    from t3d.core.progress import bar

    unknown = next((name for name in names if name not in DATASETS), None)
    if unknown is not None:
        raise ValueError(f"unknown data set {unknown!r}; choose among {', '.join(DATASETS)}")
    if folder is not None:
        check_output(folder, *FILES)
    folder = folder or data_folder()
    paths = [folder / file for file, source in FILES.items() if source.dataset in names]
    with bar("download", len(paths), "file", show=progress) as count:
        for path in paths:
            _provide(path)
            count.advance()
    return paths


def _provide(path: Path) -> None:
    """Check the file that is there, or fetch it."""
    if path.is_file():
        _check(path, read_records(path, {}))
        return
    source = FILES[path.name]
    fetched = [_fetch(source, name) for name in source.paths]
    # The Hub's cache keeps a revision's files in a folder that its commit names.
    commit = fetched[0].parents[source.paths[0].count("/")].name
    origin = f"{source.repository}@{commit[:8]}"
    records = source.convert(*map(_rows, fetched), source=origin)
    found = content_digest(records)
    if source.digest not in (None, found):
        raise ValueError(
            f"{path}: what {origin} gives has the digest {found}, not {source.digest}; "
            "give --data FOLDER with files of your own"
        )
    make_directory(path.parent)
    write_bytes(path, to_jsonl(records))


def _fetch(source: Source, name: str) -> Path:
    """A file on the Hub, in the Hub's own cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            hf_hub_download(source.repository, name, repo_type="dataset", revision=source.revision)
        )
    except (OSError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{source.repository}/{name}: cannot be fetched from the Hub ({reason}); "
            "check the network, or give --data FOLDER with files of your own"
        ) from error


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    if path.suffix == ".json":
        return upstream_rows(path)
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).read().to_pylist()
    return [row for _, row in read_json_lines(path)]
