"""A killed run goes on where it stopped, and ends with the same weights to the last bit."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerControl

from t3d.core import progress
from t3d.models import LanguageModel
from t3d.noising import Noiser, NoiserInput, View
from t3d.training import run
from t3d.training.config import MethodConfig, OptimizerName, TrainingConfig
from t3d.training.methods import Method, build_method
from t3d.training.run import fit
from tests.training.conftest import Recorder

Weights = Callable[[LanguageModel], dict[str, Tensor]]
NUM_ROWS = 27
SETTINGS = TrainingConfig(
    steps=10,
    batch_size=8,
    micro_batch_size=4,
    learning_rate=1e-2,
    warmup_steps=2,
    save_seconds=0,
    logging_steps=1,
)
"""Three steps an epoch, so that a run resumes inside an epoch and inside a round."""


class PowerCut(Exception):
    pass


@dataclass
class Interrupted:
    """A noiser during whose call number `at` the power goes off."""

    noiser: Noiser
    at: int

    def __call__(self, given: NoiserInput) -> list[View]:
        self.at -= 1
        if self.at < 0:
            raise PowerCut
        return self.noiser(given)

    @property
    def num_views(self) -> int | None:
        return self.noiser.num_views


def interrupt(
    bench: Any, method: Method, at: int, directory: Path, settings: TrainingConfig = SETTINGS
) -> None:
    noiser = Interrupted(method.noiser, at)
    cut = replace(method, noiser=noiser)
    with pytest.raises(PowerCut):
        fit(bench.model(), cut, bench.rows(NUM_ROWS), settings, directory, progress=False)


METHODS = {
    "t3d": build_method(MethodConfig("t3d", objective={"fake": "sample"}, reference_every=4)),
    "naive_td": build_method(MethodConfig("naive_td")),
    "cdlm": build_method(MethodConfig("cdlm")),
}


@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "adamw") for name in METHODS), ("naive_td", "muon")]
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    bench: Any, weights: Weights, tmp_path: Path, name: str, optimizer: OptimizerName
):
    method, settings = METHODS[name], replace(SETTINGS, optimizer=optimizer)
    whole_lm, resumed_lm = bench.model(), bench.model()
    rows = bench.rows(NUM_ROWS)
    whole = fit(whole_lm, method, rows, settings, tmp_path / "whole", progress=False)
    directory = tmp_path / "resumed"
    # In the second micro-batch of the fifth step, and once more, in the third step after resuming.
    for call, last in ((2 * 4 + 1, 4), (2 * 2 + 1, 6)):
        interrupt(bench, method, call, directory, settings)
        assert [path.name for path in directory.iterdir()] == [f"checkpoint-{last}"]
    if method.reference_every is not None:
        checkpoint = load_file(directory / "checkpoint-6" / "model.safetensors")
        reference = load_file(directory / "checkpoint-6" / "reference.safetensors")
        assert any(not torch.equal(checkpoint[k], reference[k]) for k in checkpoint)
    resumed = fit(resumed_lm, method, rows, settings, directory, progress=False)

    expected, actual = weights(whole_lm), weights(resumed_lm)
    assert all(torch.equal(actual[k], expected[k]) for k in expected)
    assert resumed.state.global_step == whole.state.global_step == 10
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen > 0
    drop = {"epoch", "step"}
    for a, b in zip(resumed.state.log_history[:10], whole.state.log_history[:10], strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == pytest.approx(
            {k: v for k, v in b.items() if k not in drop}
        )


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(
    bench: Any, weights: Weights, tmp_path: Path
):
    method, rows = METHODS["t3d"], bench.rows(NUM_ROWS)
    lm, again = bench.model(), bench.model()
    fit(lm, method, rows, SETTINGS, tmp_path / "whole", progress=False)
    directory = tmp_path / "killed"
    interrupt(bench, method, 2 * 5 + 1, directory)
    # Killed while the next one was written; the trainer's state comes last.
    last = directory / "checkpoint-6"
    last.mkdir()
    (last / "model.safetensors").write_bytes(b"half")
    visits = Recorder(method.noiser)
    fit(again, replace(method, noiser=visits), rows, SETTINGS, directory, progress=False)
    assert len(visits.batches) == 2 * 5
    assert [path.name for path in directory.iterdir()] == ["checkpoint-10"]
    assert all(torch.equal(weights(again)[k], value) for k, value in weights(lm).items())


def test_a_finished_run_is_not_trained_further(bench: Any, weights: Weights, tmp_path: Path):
    method, rows = METHODS["t3d"], bench.rows(NUM_ROWS)
    lm, again = bench.model(), bench.model()
    first = fit(lm, method, rows, SETTINGS, tmp_path, progress=False)
    second = fit(again, method, rows, SETTINGS, tmp_path, progress=False)
    assert second.state.global_step == 10
    assert second.state.num_input_tokens_seen == first.state.num_input_tokens_seen
    assert all(torch.equal(weights(again)[k], value) for k, value in weights(lm).items())


@given(
    seconds=st.sampled_from([0.0, 30.0]),
    steps=st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), max_size=40),
)
def test_little_is_lost_and_little_time_goes_to_saving(
    seconds: float, steps: list[tuple[float, float]]
) -> None:
    """Steps and checkpoints of any length, on a clock of its own."""
    arguments = SimpleNamespace(device="cpu")
    control = TrainerControl()
    now = saving = lost = 0.0
    with patch.object(run, "time", SimpleNamespace(monotonic=lambda: now)):
        callback = run.Saving(seconds)
        callback.on_train_begin(arguments, None, control)
        rest = seconds
        for step, checkpoint in steps:
            now += step
            lost += step
            # What a kill in this step loses.
            assert lost <= max(seconds, rest) + step + 1e-6
            callback.on_step_end(arguments, None, control)
            if control.should_save:
                assert lost >= rest - 1e-6
                assert not seconds or saving <= now / 10 + 1e-6
                now += checkpoint
                saving += checkpoint
                callback.on_save(arguments, None, control)
                lost, rest = 0.0, max(seconds, 9 * checkpoint) if seconds else 0.0


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from t3d.training.methods import METHODS
from t3d.tasks import get_task
from t3d.training.config import ModelShape, PretrainConfig, TrainingConfig
from t3d.training.pretrain import pretrain

shape = ModelShape(16, 16, 1, 2, 1, 8)
training = TrainingConfig(
    steps=5, batch_size=4, micro_batch_size=2, learning_rate=1e-2, warmup_steps=0, save_seconds=0
)
config = PretrainConfig(num_examples=16, vocab_size=300, shape=shape, training=training)
pretrain(config, Path(sys.argv[1]), progress=False)
"""


def test_a_killed_process_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """kill -9 as soon as a checkpoint appears, whatever of it is written; then run again."""
    script, killed, whole = (tmp_path / name for name in ("script.py", "killed", "whole"))
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(killed)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.DEVNULL,
    )
    while not (tmp_path / ".killed.training" / "checkpoint-4").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists()
    hashes = []
    for output in (killed, whole):
        monkeypatch.setattr(sys, "argv", ["script.py", str(output)])
        runpy.run_path(str(script))
        hashes.append(json.loads((output / "provenance.json").read_text())["weights_hash"])
    assert hashes[0] == hashes[1]


def test_too_few_sequences_are_an_error(bench: Any, tmp_path: Path):
    method = METHODS["naive_td"]
    with pytest.raises(ValueError, match="7 training sequences are fewer than batch_size=8"):
        fit(bench.model(), method, bench.rows(7), SETTINGS, tmp_path, progress=False)


def test_the_display_is_told_whether_training_goes_well(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[progress.Stage] = []
    monkeypatch.setattr(progress, "hear", told.append)
    fit(bench.model(), METHODS["t3d"], bench.rows(NUM_ROWS), SETTINGS, tmp_path, progress=True)
    shown = told[-1].metrics
    assert {"loss", "learning rate", "tokens/s"} <= shown.keys()
    assert 0 <= shown["learning rate"] < 0.1
