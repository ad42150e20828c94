"""Commands that measure speed: bench decode, bench train."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from t3d.bench.config import DECODE, TRAIN, DecodeSettings, Device, Shape
from t3d.cli.common import print_paths, show
from t3d.core.dtypes import Dtype, torch_dtype
from t3d.core.files import check_output, make_directory
from t3d.training.config import MethodConfig, TrainingConfig

TRACE = "trace.json"


def decode_command(
    model: str | None = None,
    shape: Shape | None = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Path | None = None,
    **settings: Any,
) -> None:
    """Measure how fast a model decodes on this machine.

    Random prompts, greedy and static, without stop tokens. Beside each speed stands its share of
    what memory and arithmetic allow, at the rates that this device reaches in the same run.

    Examples:
      t3d bench decode --shape sdar-1.7b --batch_sizes '[1, 64, 256]' --output runs/rates
      t3d bench decode --model runs/student --engines '[t3d, t3d_verified, oracle]' --device cpu

    Args:
        model: a checkpoint directory, a Hub name, or mini_teacher.
        shape: random weights instead: sdar-100m (where neither is given), sdar-1.7b, sdar-4b, or
            keys of config.json as JSON.
        device: auto is the GPU where there is one.
        dtype: number format of weights and arithmetic; auto is bfloat16 on a GPU and float32 on a
            CPU.
        output: folder of decode.json, which is replaced; `t3d run --dry_run --rates` reads it.
    """
    asked = DecodeSettings(**settings)
    if output is not None:
        check_output(output, DECODE, TRAIN)

    from t3d.bench import decode
    from t3d.bench.roofline import measure_rates
    from t3d.bench.subject import choose_device, load_subject
    from t3d.bench.tables import decode_table, save

    place = choose_device(device)
    lm = load_subject(model, shape, place, dtype)
    if output is not None:
        make_directory(output)
    rates = measure_rates(place, lm.model.dtype)
    rows = decode.measure(lm, asked, rates)
    show(decode_table(rows, rates))
    if output is not None:
        save(output / DECODE, rows, rates)
        print_paths(output, DECODE)


def train_command(
    model: str | None = None,
    shape: Shape | None = None,
    method: str = "t3d",
    # The command line shows its fields.
    training: TrainingConfig = TrainingConfig(steps=4, batch_size=8, micro_batch_size=2),  # noqa: B008
    device: Device = "auto",
    profile: Path | None = None,
    output: Path | None = None,
) -> None:
    """Measure how fast a method trains on this machine.

    Random trajectories as long as those of GSM8K, the same at every optimizer step, of which the
    first is not counted. MFU is the share of what a large matrix product reaches in the same run.

    Examples:
      t3d bench train --shape sdar-1.7b --output runs/rates
      t3d bench train --model mini_teacher --method naive_td --profile runs/profile

    Args:
        model: a checkpoint directory, a Hub name, or mini_teacher.
        shape: random weights instead: sdar-100m (where neither is given), sdar-1.7b, sdar-4b, or
            keys of config.json as JSON.
        method: name in the table of methods, at its published settings.
        training: optimisation, as `t3d train` takes it; steps count the first one too.
        device: auto is the GPU where there is one.
        profile: also trace one more step into this folder's trace.json, for Perfetto or
            chrome://tracing.
        output: folder of train.json, which is replaced; `t3d run --dry_run --rates` reads it.
    """
    if output is not None:
        check_output(output, DECODE, TRAIN)
    if profile is not None:
        check_output(profile, TRACE)

    from t3d.bench import train
    from t3d.bench.roofline import measure_rates
    from t3d.bench.subject import choose_device, load_subject
    from t3d.bench.tables import save, train_table
    from t3d.training.methods import build_method

    built, place = build_method(MethodConfig(method)), choose_device(device)
    lm = load_subject(model, shape, place, "float32")
    for folder in filter(None, (output, profile)):
        make_directory(folder)
    rates = measure_rates(place, torch_dtype(training.dtype, place))
    trace = None if profile is None else profile / TRACE
    # Libraries print to stdout, which belongs to the results.
    with redirect_stdout(sys.stderr):
        row = train.measure(lm, method, built, training, rates, trace=trace)
    show(train_table(row, rates))
    if output is not None:
        save(output / TRAIN, [row], rates)
        print_paths(output, TRAIN)
    if trace is not None:
        print_paths(trace)
