from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch
import transformers

import t3d
from t3d.core.provenance import hash_weights, package_versions, provenance


def test_versions_are_those_that_run() -> None:
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    # torch itself may name the build too, 2.8.0+cu128.
    assert torch.__version__.startswith(versions["torch"])
    assert versions["transformers"] == transformers.__version__
    assert versions["t3d"] == t3d.__version__


def test_provenance_is_json_and_keeps_paths_as_text(tmp_path: Path) -> None:
    config = {"output": tmp_path, "decoding": {"block_size": 4}}
    document = provenance(config=config, seed=3, model="m", weights_hash=None)
    assert json.loads(json.dumps(document)) == document
    assert document["config"] == {"output": str(tmp_path), "decoding": {"block_size": 4}}
    assert (document["seed"], document["model"], document["weights_hash"]) == (3, "m", None)
    assert document["packages"] == package_versions()


def test_hash_of_weights_is_that_of_the_files_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "model-00002.safetensors").write_bytes(b"second")
    (tmp_path / "model-00001.safetensors").write_bytes(b"first")
    (tmp_path / "config.json").write_bytes(b"not weights")
    assert hash_weights(tmp_path) == hashlib.sha256(b"firstsecond").hexdigest()
    (tmp_path / "model-00002.safetensors").write_bytes(b"secone")
    assert hash_weights(tmp_path) == hashlib.sha256(b"firstsecone").hexdigest()


def test_hash_of_no_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*\.safetensors files"):
        hash_weights(tmp_path)
