"""Training benchmark of a method: trajectories, tokens and arithmetic a second."""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.profiler import profile

from t3d.bench.roofline import Load, ModelCosts, Rates, peak_bytes, reset_peak, synchronize
from t3d.bench.subject import device_name, ordinary_ids
from t3d.core.blocks import BlockLayout
from t3d.core.dtypes import dtype_name, torch_dtype
from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_rows
from t3d.models import LanguageModel
from t3d.noising import Noiser, NoiserInput, View
from t3d.training.config import TrainingConfig
from t3d.training.methods import Method
from t3d.training.run import fit
from t3d.training.trainer import TrainingCallback

PROMPT, RESPONSE = (40, 200), (80, 400)
"""Shortest and longest prompt and response in tokens, as in GSM8K; a response is filled up to a
whole block."""
ROLLOUT_BLOCK = 4


@dataclass(frozen=True)
class TrainRow:
    """One method on one device."""

    implementation: str
    device: str
    dtype: str
    """Number format of the arithmetic; the weights are float32."""
    model: str
    method: str
    batch_size: int
    micro_batch_size: int
    trajectories_per_second: float
    tokens_per_second: float
    """Prompt and response tokens a second; each counts once, however often the training layout
        repeats it."""
    peak_memory_bytes: int | None
    """Most memory that the run held, as `peak_bytes` measures it."""
    mfu: float
    """Model FLOPs utilisation: the arithmetic of `step_flops` a second, as a share of a large
        matrix product's rate."""
    losses: list[float]
    """Loss of every optimizer step, that of the warm-up step included."""


def random_trajectories(num: int, tokens: Sequence[int], mask_token_id: int) -> list[Trajectory]:
    """Trajectories of random `tokens`, committed one a step in random order within each block."""
    draw, out = random.Random(0), []
    for number in range(num):
        before, after = draw.randint(*PROMPT), draw.randint(*RESPONSE)
        after += -(before + after) % ROLLOUT_BLOCK
        ids = [draw.choice(tokens) for _ in range(before + after)]
        step_map: list[int] = []
        while len(step_map) < after:
            size = ROLLOUT_BLOCK - (before + len(step_map)) % ROLLOUT_BLOCK
            step_map += draw.sample(range(size), size)
        out.append(
            Trajectory(
                prompt_id=str(number),
                prompt_ids=ids[:before],
                response_ids=ids[before:],
                initial_ids=[mask_token_id] * after,
                step_map=step_map,
                log_probs=[0.0] * after,
                num_response_tokens=after,
                finish_reason="length",
                block_size=ROLLOUT_BLOCK,
            )
        )
    return out


class Clock(TrainingCallback):
    """Seconds of every optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(args.device)
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(args.device)
        self.seconds.append(time.perf_counter() - self._began)


class _Profile(TrainingCallback):
    """Traces the last optimizer step, in the format of Chrome's and Perfetto's viewers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == args.max_steps - 1:
            self._profile = profile()
            self._profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # global_step includes this step already.
        if state.global_step == args.max_steps:
            synchronize(args.device)
            self._profile.stop()
            self._profile.export_chrome_trace(str(self.path))


def training_load(batch: TrajectoryBatch, layout: BlockLayout, views: Sequence[View]) -> Load:
    """The load of the clean and the noised copies in the layout of `BlockLayout.training`."""
    size, tokens, pairs = layout.block_size, 0, 0
    for prompt, length in zip(batch.prompt_length.tolist(), batch.length.tolist(), strict=True):
        first, last = (n // size for n in (layout.floor(prompt), layout.ceil(length)))
        # Block j sees j + 1 blocks, itself included; the last one has no clean copy.
        tokens += size * (last - 1 + len(views) * (last - first))
        seen = last * (last - 1) // 2
        seen += len(views) * (last * (last + 1) - first * (first + 1)) // 2
        pairs += size**2 * seen
    return Load(tokens, pairs, sum(int(view.loss_mask.sum()) for view in views))


def step_flops(
    costs: ModelCosts, load: Load, *, frozen: int, checkpointing: bool, lora: bool
) -> float:
    """Multiplications and additions of a training pass.

    With the weights N of the layers and H of the head, W numbers of a token's queries in all
    layers, T tokens, P pairs and M loss tokens, a forward pass takes F = 2 N T + 4 W P + 2 H M.
    The student takes 3 F (6 N T and so on: its backward pass twice its forward pass), each frozen
    copy F, and activation checkpointing 2 N T + 4 W P once more. With LoRA the weights have no
    gradient, and the student takes 4 N T + 12 W P + 4 H M. What a chunked head computes again in
    the backward pass is not counted, nor are adapters, norms and the optimizer.

    Args:
        frozen: number of frozen models: reference and teacher, if any.
    """
    weights = costs.flops(Load(tokens=load.tokens))
    attention = costs.flops(Load(pairs=load.pairs))
    head = costs.flops(Load(logits=load.logits))
    student = (2 if lora else 3) * (weights + head) + 3 * attention
    again = weights + attention if checkpointing else 0
    return student + frozen * (weights + attention + head) + again


@dataclass
class _Recorder:
    """A noiser that keeps the load of every batch that another one noises."""

    noiser: Noiser
    loads: list[Load] = field(default_factory=list)

    def __call__(self, given: NoiserInput) -> list[View]:
        views = self.noiser(given)
        self.loads.append(training_load(given.batch, given.layout, views))
        return views

    @property
    def num_views(self) -> int | None:
        return self.noiser.num_views


def measure(
    lm: LanguageModel,
    name: str,
    method: Method,
    training: TrainingConfig,
    rates: Rates,
    *,
    trace: Path | None = None,
) -> TrainRow:
    """Train `lm` on random trajectories, the same at every step; the first step warms up.

    Args:
        lm: the model; on the CPU, if it shall be trained there.
        name: name of the method.
        training: settings; all steps but the first are measured, and the median counts.
        rates: rates of the device, in the dtype of the arithmetic.
        trace: file for the profile of one more step, in a folder that exists.

    Raises:
        ValueError: for a single step, or settings that do not fit.
    """
    if training.steps < 2:
        raise ValueError("training.steps must be at least 2: the first step only warms up")
    device = lm.model.device
    on_cpu = {"use_cpu": True} if device.type == "cpu" else {}
    config = replace(
        training,
        steps=training.steps + (trace is not None),
        logging_steps=1,
        save_seconds=math.inf,
        trainer=on_cpu | training.trainer,
    )
    # Counted before training, which may add an adapter's layers.
    costs = ModelCosts.of(lm.model)
    trajectories = random_trajectories(training.batch_size, ordinary_ids(lm), lm.mask_token_id)
    recorder, clock = _Recorder(method.noiser), Clock()
    callbacks = [clock] if trace is None else [clock, _Profile(trace)]
    reset_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fit(
            lm,
            replace(method, noiser=recorder),
            training_rows(trajectories),
            config,
            Path(folder),
            callbacks=callbacks,
            progress=False,
        )
    peak = peak_bytes(device)
    taken = statistics.median(clock.seconds[1 : training.steps])
    passes = len(recorder.loads) // config.steps
    measured = sum(recorder.loads[passes : passes * training.steps], Load())
    objective = method.objective
    flops = step_flops(
        costs,
        measured,
        frozen=objective.needs_reference + objective.needs_teacher,
        checkpointing=training.activation_checkpointing,
        lora=training.lora is not None,
    ) / (training.steps - 1)
    num_tokens = sum(len(t.prompt_ids) + len(t.response_ids) for t in trajectories)
    return TrainRow(
        implementation="t3d",
        device=device_name(device),
        dtype=dtype_name(torch_dtype(training.dtype, device)),
        model=lm.name,
        method=name,
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        trajectories_per_second=len(trajectories) / taken,
        tokens_per_second=num_tokens / taken,
        peak_memory_bytes=peak,
        mfu=flops / taken / rates.flops_per_second,
        losses=[row["loss"] for row in trainer.state.log_history if "loss" in row],
    )
