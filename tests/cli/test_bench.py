"""`t3d bench`: tables, files, and that --dry_run reads these."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t3d.bench import roofline
from t3d.experiment.plan import plan
from t3d.experiment.recipe import RunConfig
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def _small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline._COPY, "cpu", 1 << 16)
    monkeypatch.setitem(roofline._SIDE, "cpu", 64)


def test_rates_that_a_plan_reads(checkpoint: Path, tmp_path: Path, t3d: Run) -> None:
    folder, profile = tmp_path / "rates", tmp_path / "profile"
    common = ("--model", checkpoint, "--device", "cpu", "--output", folder)
    sizes = ("--batch_sizes", "[1, 2]", "--denoising_steps", "[4]", "--new_tokens", 8)
    prompts = ("--prompt_tokens", "[5, 9]", "--num_requests", 1, "--repeats", 1)
    decode = t3d("bench", "decode", *common, *sizes, *prompts)
    assert (decode.code, decode.err) == (0, "")
    assert decode.out.splitlines()[-1] == f"{folder}/decode.json"
    found = json.loads((folder / "decode.json").read_text(encoding="utf-8"))
    assert {"date", "command", "versions", "platform", "threads", "rates"} < set(found)
    rows = found["rows"]
    assert [(row["batch_size"], row["engine"]) for row in rows] == [
        (1, "t3d"), (1, "t3d_verified"), (2, "t3d"), (2, "t3d_verified"),
    ]  # fmt: skip
    for row in rows:
        assert row["model"] == str(checkpoint)
        assert f"{row['tokens_per_second']:,.1f}" in decode.out

    size = ("--training.steps", 2, "--training.batch_size", 2, "--training.micro_batch_size", 2)
    train = t3d("bench", "train", *common, *size, "--profile", profile)
    assert train.code == 0, train.err
    assert train.out.splitlines()[-2:] == [f"{folder}/train.json", f"{profile}/trace.json"]
    [row] = json.loads((folder / "train.json").read_text(encoding="utf-8"))["rows"]
    assert (row["method"], row["batch_size"], len(row["losses"])) == ("t3d", 2, 3)
    assert f"{row['tokens_per_second']:,.0f}" in train.out

    planned = {(stage, what): value for stage, what, value in plan(
        RunConfig(model=str(checkpoint)), folder
    )}  # fmt: skip
    assert planned["rollout", "time"].endswith("hours at most on cpu")
    assert planned["train", "time of a model"].endswith("hours at most on cpu")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("decode", "--shape", "nosuch"), 1, "shape 'nosuch' is none of sdar-100m"),
        (("decode", "--shape", "{hidden_size: 8}"), 1, "shape: lacks vocab_size"),
        (("decode", "--model", "x", "--shape", "sdar-4b"), 1, "not both"),
        (("decode", "--denoising_steps", "[9]"), 1, "denoising_steps must be at most"),
        (("decode", "--nosuch", "1"), 2, "nosuch"),
        (("train", "--method", "nosuch"), 1, "unknown method 'nosuch'"),
        (("train", "--model", "nosuch/../x"), 1, "no such checkpoint directory"),
    ],
)
def test_wrong_calls(command: tuple[str, ...], code: int, message: str, t3d: Run) -> None:
    outcome = t3d("bench", *command)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.out == ""
