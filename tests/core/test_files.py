from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.core.files import RECIPE, claim, hash_file, read_object, write_bytes, write_json
from t3d.core.provenance import provenance

ROOT = Path(__file__).parents[2]


LIMITED = """
import resource, sys
from pathlib import Path
from t3d.core.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_bytes(Path(sys.argv[1]), b"x" * 2000)
"""


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert hash_file(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_json_round_trips(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_a_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "f", b"old")
    write_bytes(tmp_path / "f", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b"new"}


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert f"ValueError: {path}: cannot be written: {os.strerror(errno.EFBIG)}" in done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"f": b"old"}


@pytest.mark.parametrize("parent", ["file", "absent"])
def test_no_directory_to_write_to(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"cannot be written: (Not a directory|No such file)"):
        write_json(tmp_path / parent / "f", {})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


@pytest.mark.parametrize("text", ["[]", "3", "{", "[1, {}]", '{"a": NaN}', "\xff"])
def test_a_claim_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"recipe.json: not .*; choose another output"):
        claim(tmp_path, {"a": 1}, None)


def test_what_a_killed_claim_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "recipe.json.77.partial").write_text("{")
    (tmp_path / ".hidden").write_text("")
    claim(tmp_path, {"a": 1}, None)
    (tmp_path / "more").mkdir()
    claim(tmp_path, {"a": 1}, None)
    with pytest.raises(ValueError, match="holds what another recipe made"):
        claim(tmp_path, {"a": 2}, None)


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "f", b"new")
    assert not list(tmp_path.iterdir())


def test_what_is_recorded_can_be_read_back(tmp_path: Path) -> None:
    """Seconds between checkpoints may be infinite, which JSON has no number for."""
    asked = {
        "save_seconds": math.inf,
        "path": Path("a"),
        "sizes": (4, 8),
        "none": None,
        3: -math.inf,
    }
    found = {"save_seconds": "inf", "path": "a", "sizes": [4, 8], "none": None, "3": "-inf"}
    record = provenance(config=asked, seed=0, model="m", weights_hash=None)
    write_json(tmp_path / "provenance.json", record)
    assert read_object(tmp_path / "provenance.json")["config"] == found
    for _ in range(2):
        claim(tmp_path / "out", {"rollout": {"patience": math.inf}}, None)
    assert read_object(tmp_path / "out" / RECIPE)["rollout"] == {"patience": "inf"}
