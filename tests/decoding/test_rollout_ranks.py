"""Rollouts of several processes, cut off, killed and resumed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import psutil
import pytest
import torch

from t3d.core.files import write_bytes
from t3d.core.store import TrajectoryStore
from t3d.decoding.rollout import rollout
from t3d.models.loading import LanguageModel
from tests.decoding.toy import CONFIG, shards, toy_examples, toy_lm


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return toy_lm()


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("num_writes", range(8))
def test_a_run_cut_off_at_any_write_resumes_to_the_same_bytes(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    examples = toy_examples(8)
    whole = rollout(lm, examples, tmp_path / "whole", CONFIG, progress=False)
    writes = iter(range(num_writes))

    def cut(path: Path, data: bytes) -> None:
        if next(writes, None) is None:
            path.with_name(path.name + ".1.partial").write_bytes(data[:9])
            raise KeyboardInterrupt
        write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("t3d.core.files.write_bytes", cut)
        patch.setattr("t3d.core.shards.write_bytes", cut)
        # The manifest, then three shards and their marks.
        if num_writes < 7:
            with pytest.raises(KeyboardInterrupt):
                rollout(lm, examples, tmp_path / "cut", CONFIG, progress=False)
        else:
            rollout(lm, examples, tmp_path / "cut", CONFIG, progress=False)
    resumed = rollout(lm, examples, tmp_path / "cut", CONFIG, progress=False)
    assert shards(resumed.path) == shards(whole.path)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts processes; this file is imported once for all of them."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def work() -> None:
    """What a rank does, told by the environment who it is."""
    torch.set_num_threads(1)
    config = dataclasses.replace(CONFIG, patience=60.0)
    examples = toy_examples(int(os.environ["NUM"]))
    store = rollout(toy_lm(), examples, Path(os.environ["STORE"]), config, progress=False)
    # Complete for all of them, whoever made it.
    assert len(store.read()) == len(examples)


def work_by_hand(path: Path, num: int, rank: int, world_size: int) -> None:
    os.environ |= {"STORE": str(path), "NUM": str(num)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    work()


def wait_for_a_shard(path: Path, is_running: Callable[[], bool]) -> None:
    before = set(path.glob("shards/*.json"))
    while not set(path.glob("shards/*.json")) - before:
        assert is_running()
        time.sleep(0.01)


def test_a_killed_process_loses_and_repeats_nothing(
    lm: LanguageModel, processes: ForkServerContext, tmp_path: Path
) -> None:
    path, examples = tmp_path / "killed", toy_examples(42)
    process = processes.Process(target=work_by_hand, args=(path, 42, 0, 1))
    process.start()
    wait_for_a_shard(path, process.is_alive)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < len(TrajectoryStore.open(path)) < len(examples)
    resumed = rollout(lm, examples, path, CONFIG, progress=False)
    whole = rollout(lm, examples, tmp_path / "whole", CONFIG, progress=False)
    assert shards(resumed.path) == shards(whole.path)
    assert [row.prompt_id for row in resumed.read()] == [example.id for example in examples]


def test_ranks_share_the_prompts_and_others_may_finish(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = toy_examples(14)
    whole = rollout(lm, examples, tmp_path / "whole", CONFIG, progress=False)
    hasty = dataclasses.replace(CONFIG, patience=0.3)

    def run(rank: int, world_size: int) -> TrajectoryStore:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        return rollout(lm, examples, tmp_path / "ranks", hasty, progress=False)

    for rank, there in ((1, {3, 4, 5, 12, 13}), (2, {3, 4, 5, 6, 7, 8, 12, 13})):
        message = (
            f"finished nothing for 0.3 seconds, and {len(there)} of 14 rollouts are there; start"
        )
        with pytest.raises(ValueError, match=message):
            run(rank, 3)
        assert TrajectoryStore.open(tmp_path / "ranks").completed() == there
    store = run(0, 1)
    assert len(store) == len(examples)
    assert store.read() == whole.read()


def test_parts_need_no_launcher_and_wait_for_nobody(lm: LanguageModel, tmp_path: Path) -> None:
    examples, output = toy_examples(14), tmp_path / "parts"
    whole = rollout(lm, examples, tmp_path / "whole", CONFIG, progress=False)
    counts = [
        len(rollout(lm, examples, output, CONFIG, part=(number, 2), progress=False))
        for number in (1, 0)
    ]
    assert counts == [6, 14]
    assert TrajectoryStore.open(output).read() == whole.read()


def test_ranks_may_be_killed_and_be_more_or_fewer_afterwards(
    lm: LanguageModel, processes: ForkServerContext, tmp_path: Path
) -> None:
    path = tmp_path / "ranks"
    worker = [sys.executable, "-c", "from tests.decoding.test_rollout_ranks import work; work()"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher = subprocess.Popen(
        [*torchrun, "--no-python", *worker],
        cwd=ROOT,
        env={**os.environ, "STORE": str(path), "NUM": "160"},
        stderr=subprocess.DEVNULL,
    )
    wait_for_a_shard(path, lambda: launcher.poll() is None)
    psutil.Process(launcher.pid).children()[1].kill()
    # It stops the other one.
    assert launcher.wait() == 1
    assert 0 < len(TrajectoryStore.open(path)) < 160

    def start_by_hand(world_size: int) -> list[ForkServerProcess]:
        ranks = [
            processes.Process(target=work_by_hand, args=(path, 160, rank, world_size))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        wait_for_a_shard(path, lambda: any(rank.is_alive() for rank in ranks))
        return ranks

    three = start_by_hand(3)
    three[0].kill()
    three[0].join()
    # The others finish their parts, and wait for whoever takes the place of the first.
    ranks = three + start_by_hand(1)
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [-signal.SIGKILL, 0, 0, 0]
    whole = rollout(lm, toy_examples(160), tmp_path / "whole", CONFIG, progress=False)
    assert TrajectoryStore.open(path).read() == whole.read()
