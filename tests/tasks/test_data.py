"""Conversion, the schema, the digests and the download, against a local Hub."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.tasks import data
from t3d.tasks.convert import mbpp
from t3d.tasks.data import FILES, download, load_records
from t3d.tasks.records import SCHEMA, content_digest, read_records, to_jsonl

from .conftest import (
    HUMANEVAL_ROWS,
    MATH500_ROWS,
    MATH_TRAIN_ROWS,
    PRIMEINTELLECT_ROWS,
    RECORDS,
    gsm8k_rows,
    mbpp_rows,
    sanitized_rows,
)

REAL = Path(__file__).parents[3] / "shared" / "data"
"""The whole data in the same layout, where a developer has it."""
REAL_FILES = [file for file in FILES if (REAL / file).exists()]


def published_rows(file: str) -> list[list[dict[str, Any]]]:
    """The published rows of each path of a source, rebuilt from the real records."""
    rows = [asdict(record) for record in read_records(REAL / file, {})]
    if file.startswith("gsm8k"):
        return [[{"question": r["question"], "answer": r["reference"]} for r in rows]]
    if file.startswith("math500"):
        return [
            [
                {"problem": f" {r['question']}", "solution": r["reference"], "answer": r["answer"]}
                | r["meta"]
                for r in rows
            ]
        ]
    if file.startswith("humaneval"):
        return [
            [
                {
                    "task_id": r["meta"]["task_id"],
                    "prompt": r["meta"]["raw_prompt"],
                    "canonical_solution": r["meta"]["canonical_solution"],
                    "test": r["meta"]["raw_test"],
                    "entry_point": r["entry_point"],
                }
                for r in rows
            ]
        ]
    full = [
        {
            "task_id": r["meta"]["task_id"],
            "text": r["meta"]["text"],
            "code": r["reference"].replace("\n", "\r\n"),
            "test_list": r["meta"]["asserts"],
            "test_setup_code": r["test_setup"],
            "challenge_test_list": r["meta"]["challenge_asserts"],
        }
        for r in rows
    ]
    edited = [
        r["meta"]["sanitized"] | {"task_id": r["meta"]["task_id"]}
        for r in rows
        if r["meta"]["sanitized"]
    ]
    empty: list[list[dict[str, Any]]] = [[] for _ in range(len(FILES[file].paths) // 2 - 1)]
    return [full[::-1], *empty, edited, *empty]


@pytest.mark.parametrize("file", REAL_FILES)
def test_the_whole_published_data_is_converted_and_recognised(file: str) -> None:
    source = FILES[file]
    assert content_digest(load_records(file, REAL, {})) == source.digest
    assert content_digest(source.convert(*published_rows(file), source="s")) == source.digest


def test_mbpp_prefixes_and_tests() -> None:
    clip, add, *_, pair = mbpp(
        mbpp_rows(range(1, 5)), sanitized_rows(range(2, 3)), split="test", source="s"
    )
    header = "Here is the completed code:\n```python\n"
    assert clip.prompt_prefix == (
        f'{header}LIMIT = 9\ndef floor(x): \n    """ Clip a number.\n    """\n\n'
    )
    assert clip.meta["prompt_prefix_fixed"] == (
        f'{header}def clip(x) :\n    """ Clip a number.\n    """\n\n'
    )
    assert clip.tests == [
        "\n\ndef check(candidate):\n    assert clip(12) == 9\n    assert clip(-3) == 0\n"
        "\ncheck(floor)"
    ]
    assert (clip.entry_point, clip.meta["prefix_fn"]) == ("clip", "floor")
    assert "\r" not in (clip.reference or "\r")
    assert add.question == "Add 2.\nYour code should pass the test:\nassert add(0) == 2\n"
    assert add.prompt_prefix == f'{header}import math\ndef add(x):\n    """ Add 2.\n    """\n\n'
    assert add.meta["sanitized"]["prompt"] == "Return x plus 2."
    assert clip.meta["sanitized"] is None
    assert not pair.meta["in_t3d"]
    assert pair.prompt_prefix == pair.meta["prompt_prefix_fixed"]
    assert pair.tests == ["assert first(p) == 4"]


@pytest.mark.parametrize("file", FILES)
def test_records_round_trip(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(to_jsonl(RECORDS[file]))
    found = [asdict(record) for record in read_records(path, {})]
    assert found == [{key: asdict(r)[key] for key in SCHEMA} for r in RECORDS[file]]


@given(st.sampled_from(sorted(SCHEMA.keys() - {"source", "license", "meta"})), st.booleans())
def test_the_digest_sees_every_key_and_the_order(key: str, swap: bool) -> None:
    records = RECORDS["gsm8k_test.jsonl"]
    changed = [replace(records[0], **{key: ["other"]}), *records[1:]]
    if swap:
        changed = [records[1], records[0], *records[2:]]
    assert content_digest(changed) != content_digest(records)
    renamed = [replace(record, source="x", license="y") for record in records]
    assert content_digest(renamed) == content_digest(records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "line 2: 'question' must be str, got None"),
        ({"tests": [1]}, "line 2: 'tests' must be a list of texts"),
        ({"answer": None}, "line 2: 'answer' must be str, got None"),
        ({"id": "gsm8k/test/0"}, "line 2: the id 'gsm8k/test/0' is already that of line 1"),
        ({"tests": ...}, "line 2: lacks the key 'tests'"),
        ({"meta": {}}, "line 2: lacks the key 'meta.level'; files converted from the authors'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rows = [asdict(record) | {"meta": {"level": 1}} for record in RECORDS["gsm8k_test.jsonl"]]
    rows[1] = {key: value for key, value in (rows[1] | changes).items() if value is not ...}
    path = tmp_path / "gsm8k_test.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}, {message}")):
        load_records(path.name, tmp_path, {"answer": str, "meta.level": int})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", ": holds no problems"),
        (b"{}\n[", ", line 1: lacks the key 'id'"),
        (b"\n[1]", ", line 2: not a JSON object"),
        (b"\n{", ", line 2: not JSON: "),
        (b"\xff", ": not UTF-8 text"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "math500.jsonl").write_bytes(content)
    path = tmp_path / "math500.jsonl"
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}{message}")):
        load_records(path.name, tmp_path, {})


def test_only_the_cache_is_checked(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T3D_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="there is no such file; run `t3d data download mbpp` or"):
        load_records("mbpp_test.jsonl", None, {})
    path = tmp_path / "mbpp_test.jsonl"
    path.write_bytes((folder / path.name).read_bytes())
    records = load_records(path.name, tmp_path, {})
    found, wanted = content_digest(records), FILES[path.name].digest
    message = re.escape(f"{path}: its content has the digest {found}, not {wanted}; delete it")
    with pytest.raises(ValueError, match=message):
        load_records(path.name, None, {})
    monkeypatch.setattr(data, "FILES", {path.name: FILES[path.name]})
    with pytest.raises(ValueError, match=message):
        download(["mbpp"], progress=False)


def test_download_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match=r"MATH-500/test.jsonl: cannot be fetched from the Hub \("):
        download(["math500"], tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()
    with pytest.raises(ValueError, match="unknown data set 'mmlu'; choose among gsm8k, math500,"):
        download(["mmlu"], tmp_path, progress=False)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def hub_files() -> dict[str, bytes]:
    """What the Hub serves, by URL path; as much as `RECORDS` is made of."""
    full, edited = mbpp_rows(range(1, 96)), sanitized_rows(range(1, 51))
    rows = {
        "gsm8k_train.jsonl": [gsm8k_rows(503)],
        "gsm8k_test.jsonl": [gsm8k_rows(4)],
        "humaneval.jsonl": [HUMANEVAL_ROWS],
        "mbpp_train.jsonl": [full[:2], full[9:], full[2:9], edited[:1], edited[9:], edited[1:9]],
        "mbpp_test.jsonl": [mbpp_rows(range(101, 106)), sanitized_rows(range(102, 104))],
    }
    contents = {file: list(map(parquet, parts)) for file, parts in rows.items()}
    contents["math500.jsonl"] = ["".join(json.dumps(r) + "\n" for r in MATH500_ROWS).encode()]
    contents["math_train.jsonl"] = [json.dumps(MATH_TRAIN_ROWS).encode()]
    contents["primeintellect.jsonl"] = [json.dumps(PRIMEINTELLECT_ROWS).encode()]
    return {
        f"/datasets/{FILES[file].repository}/resolve/{FILES[file].revision}/{path}": content
        for file, parts in contents.items()
        for path, content in zip(FILES[file].paths, parts, strict=True)
    }


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A server that answers as the Hub does: its address, and the paths it was asked for."""
    files, asked = hub_files(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            if content is not None:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                commit = self.path.split("/")[5].replace("main", "c0ffee" + "0" * 34)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET" and content is not None:
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import json, sys
from dataclasses import replace
from t3d.tasks import data
for file, digest in json.loads(sys.argv[1]).items():
    data.FILES[file] = replace(data.FILES[file], digest=digest)
try:
    print(*data.download(data.DATASETS, progress=False), sep="\\n")
except ValueError as error:
    print(error)
"""


def test_download_from_a_local_hub(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    endpoint, asked = hub
    digests = {file: content_digest(RECORDS[file]) for file in FILES if FILES[file].digest}
    folder = tmp_path / "data"
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "T3D_DATA": str(folder),
    }

    def run(digests: dict[str, str]) -> list[str]:
        command = [sys.executable, "-c", SCRIPT, json.dumps(digests)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    # Something else than wanted: the file is not written, those before it stay.
    (message,) = run(digests | {"mbpp_train.jsonl": "0" * 64})
    assert message.startswith(
        f"{folder / 'mbpp_train.jsonl'}: what google-research-datasets/mbpp@4bb6404f gives has the "
        f"digest {digests['mbpp_train.jsonl']}, not {'0' * 64}; "
    )
    there = sorted(path.name for path in folder.iterdir())
    before = [*FILES][: [*FILES].index("mbpp_train.jsonl")]
    assert there == sorted(before)

    asked.clear()
    assert run(digests) == [str(folder / file) for file in FILES]
    fetched = [path for path in asked if "/resolve/" in path]
    names = {FILES[file].repository.rpartition("/")[2] for file in FILES if file not in before}
    assert {path.split("/")[3] for path in fetched} == names
    for file, records in RECORDS.items():
        found = read_records(folder / file, {})
        # Of what has no digest, each line tells the revision that the Hub resolved.
        own = {"@c0ffee00"} if FILES[file].digest is None else {f"@{FILES[file].revision[:8]}"}
        assert {record.source[-9:] for record in found} == own
        lines = to_jsonl([replace(record, source="s") for record in records])
        text = re.sub(rb'"source": "[^"]*"', b'"source": "s"', (folder / file).read_bytes())
        assert text == lines
    assert {path.suffix for path in folder.iterdir()} == {".jsonl"}
