"""What tests of distributed training run: in their own process, and as processes of `torchrun`."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, cast, get_args

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.experiment.recipe import DataConfig, RunConfig
from t3d.experiment.rounds import check_training, record_trajectories, train_student
from t3d.models import from_pretrained, wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny
from t3d.training.config import MethodConfig, Sharding, TrainingConfig
from t3d.training.methods import build_method
from t3d.training.run import fit
from t3d.training.sharding import load_student
from t3d.training.trainer import DiffusionTrainer, TrainingCallback
from tests.training.conftest import Bench

METHOD = build_method(MethodConfig("t3d", reference_every=2))
SETTINGS = TrainingConfig(
    steps=6,
    batch_size=8,
    # One process accumulates four of them, two accumulate two.
    micro_batch_size=2,
    learning_rate=1e-2,
    warmup_steps=2,
    save_seconds=0,
    logging_steps=1,
)
NUM_ROWS = 27


class Cut(Exception):
    pass


class PowerCut(TrainingCallback):
    """Ends a run after its fourth step: with SIGKILL, or where tests go on, with an exception."""

    def __init__(self, *, kill: bool) -> None:
        self.kill = kill

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Cut


def bench() -> Bench:
    examples = get_task("mini_gsm").examples("train", 100)
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    return Bench(train_tokenizer(texts, vocab_size=320))


def train(sharding: Sharding, directory: Path, *callbacks: TrainingCallback) -> None:
    """Train the same model on the same trajectories, from the last checkpoint there is."""
    settings = replace(SETTINGS, sharding=sharding)
    made = bench()
    lm, rows = made.model(tie_word_embeddings=True), made.rows(NUM_ROWS)
    training = directory / "training"
    trainer = fit(lm, METHOD, rows, settings, training, callbacks=callbacks, progress=False)
    trainer.save_trained(directory)
    write_facts(directory, facts_of(trainer), first=trainer.args.should_save)


def facts_of(trainer: DiffusionTrainer) -> dict[str, Any]:
    model, reference = trainer.lm.model, trainer.reference
    assert reference is not None
    layers = list(cast(nn.ModuleList, model.base_model.layers))
    sharded = [m for m in (model, reference, *layers) if isinstance(m, FSDPModule)]
    return {
        "world_size": trainer.args.world_size,
        "data_parallel": isinstance(trainer.model_wrapped, DistributedDataParallel),
        "sharded": len(sharded) == 2 + len(layers) and trainer.model_wrapped is model,
        "held": sum(local(weight).numel() for weight in model.parameters()),
        "all": sum(weight.numel() for weight in model.parameters()),
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "logs": [
            {key: row[key] for key in sorted(row.keys() - {"epoch", "step"})}
            for row in trainer.state.log_history
            if "loss" in row
        ],
    }


def local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def write_facts(directory: Path, facts: dict[str, Any], *, first: bool) -> None:
    if first:
        (directory / "facts.json").write_text(json.dumps(facts))


def half_precision(sharding: Sharding, directory: Path) -> None:
    """A step; with shards in bfloat16 and with checkpointed activations."""
    made = bench()
    lm = made.model(dtype=torch.float32)
    dtypes: list[str] = []
    layer = list(cast(nn.ModuleList, lm.model.base_model.layers))[1]
    layer.register_forward_hook(lambda module, inputs, out: dtypes.append(str(out.dtype)))
    half = sharding == "full"
    settings = replace(SETTINGS, sharding=sharding, steps=1)
    settings = replace(
        settings, dtype="bfloat16" if half else "float32", activation_checkpointing=half
    )
    trainer = fit(lm, METHOD, made.rows(NUM_ROWS), settings, directory, progress=False)
    facts = {
        "computed": sorted(set(dtypes)),
        "held": sorted({str(weight.dtype) for weight in lm.model.parameters()}),
        "loss": trainer.state.log_history[0]["loss"],
        "grad_norm": trainer.state.log_history[0]["grad_norm"],
    }
    write_facts(directory, facts, first=trainer.args.should_save)


def rounds(sharding: Sharding, directory: Path) -> None:
    """Methods with three and two rounds, in which the student makes trajectories between them.

    The second one is reinforcement of the small teacher, which is right often enough.
    """
    config = RunConfig(
        model=str(directory.parent / "teacher"),
        output=directory,
        data=DataConfig(num_prompts=12),
        rollout=RolloutConfig(DecodingConfig(max_new_tokens=8), batch_size=4, shard_size=2),
        training=replace(SETTINGS, sharding=sharding, batch_size=4),
    )
    method = MethodConfig("redi")
    # The processes find each other before the first rollout, as in `t3d run`.
    check_training(method, config.training, config.data.num_prompts, directory)
    record_trajectories(config, progress=False)
    output = directory / "checkpoints" / "redi"
    train_student(config, method, config.training, output, progress=False)
    own = {"denoising_steps": 2, "remasking": "low_confidence_static", "max_new_tokens": 96}
    method = MethodConfig(
        "lightningrl", rounds=2, steps=4, advantage={"group_size": 2}, student_decoding=own
    )
    config = replace(config, model="mini_teacher")
    training = replace(config.training, learning_rate=1e-4)
    output = directory / "checkpoints" / "lightningrl"
    train_student(config, method, training, output, progress=False)


def save_teacher(directory: Path) -> None:
    tokenizer = bench().tokenizer
    model = tiny(vocab_size=len(tokenizer), dtype=torch.float32)
    wrap(model, tokenizer, "tiny").save(directory)


def save_large(directory: Path) -> None:
    """A model of 64 MB in files of 8 MB, as large ones are published in several files, too."""
    size = {"hidden_size": 256, "intermediate_size": 4096, "initializer_range": 0.02}
    made = bench().model(dtype=torch.float32, num_hidden_layers=5, tie_word_embeddings=True, **size)
    made.model.save_pretrained(directory, max_shard_size="8MB")
    made.tokenizer.save_pretrained(directory)


def load_both_ways(root: Path) -> None:
    """A student and its reference in shards: each process reads its share of the file, then all."""
    settings = replace(SETTINGS, sharding="full", steps=1, warmup_steps=0)
    source, rows = str(root / "large"), bench().rows(NUM_ROWS)
    # The processes find each other first, and import what reads shares.
    DiffusionTrainer(bench().model(), METHOD, rows, settings, root / "loading")
    small = load_student(str(root / "teacher"), "full")
    DiffusionTrainer(small, METHOD, rows, settings, root / "loading")
    grown, weights = [], []
    for load in (lambda: load_student(source, "full"), lambda: from_pretrained(source)):
        with resident_growth() as growth:
            lm = load()
            on_meta = lm.model.device.type == "meta"
            trainer = DiffusionTrainer(lm, METHOD, rows, settings, root / "loading")
        assert on_meta == (not grown)
        grown += growth
        models = {"student": lm.model, "reference": cast(nn.Module, trainer.reference)}
        found = {f"{key} {name}": whole(w) for key, m in models.items() for name, w in named(m)}
        trainer.train()
        weights.append(found | {f"trained {name}": whole(w) for name, w in named(lm.model)})
        del lm, trainer, models
        gc.collect()
    ours, theirs = weights
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(*(ours[f"{key} model.norm.weight"] for key in ("student", "trained")))
    (root / f"loading{os.environ['RANK']}.json").write_text(json.dumps(grown))


@contextmanager
def resident_growth() -> Iterator[list[int]]:
    """Yields a list that gets the most bytes by which this process's resident memory grew."""
    process, done, out = psutil.Process(), Event(), list[int]()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(watch)
        try:
            yield out
        finally:
            done.set()
    out.append(max(seen) - seen[0])


def named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def whole(weight: Tensor) -> Tensor:
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().clone()


def train_partly(sharding: Sharding, directory: Path) -> None:
    with suppress(Cut):
        train(sharding, directory, PowerCut(kill=False))


def main(root: Path) -> None:
    load_both_ways(root)
    for sharding in get_args(Sharding):
        train(sharding, root / f"{sharding}-2")
        train(sharding, root / f"{sharding}-1to2")
    half_precision("full", root / "half2")
    rounds("none", root / "rounds2")
    train_partly("none", root / "none-2to1")
    train("full", root / "full-2to1", PowerCut(kill=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
