"""Commands that measure: eval, frontier, calibrate, lm-eval, analyze."""

from __future__ import annotations

import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from t3d.analysis.config import AnalysisConfig
from t3d.cli.common import distinct_rows, print_paths, show
from t3d.core.dtypes import Dtype
from t3d.core.files import check_output, write_json
from t3d.core.provenance import provenance
from t3d.evaluation.config import GridConfig, Speed
from t3d.interop.harness import HarnessConfig
from t3d.tasks import Split


def eval_command(
    model: str,
    output: Path,
    split: Split = "test",
    name: str | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Measure accuracy and speed of one checkpoint under several decoding settings.

    A killed evaluation goes on with the problems that are missing; settings that were finished
    before are read back. results.json holds a row a setting, samples.parquet every prompt,
    output, step map and grade.

    Examples:
      t3d eval --model mini_teacher --num_problems 100 --output runs/teacher_eval
      t3d eval --model my/checkpoint --task gsm8k --max_new_tokens 512 --output runs/gsm8k
      t3d eval --model runs/student --task questions.jsonl --output runs/student_eval
          --settings '[{denoising_steps: 4, max_new_tokens: 96}]'

    Args:
        model: a checkpoint directory, a Hub name, or mini_teacher.
        output: directory of results.json and samples.parquet.
        split: split of the benchmark.
        name: name of the method in the tables; by default a student's directory name, or original.
        progress: show progress bars.
    """
    config = GridConfig(**settings)

    from t3d.experiment.grid import evaluate_into
    from t3d.report.sheets import render_terminal
    from t3d.report.tables import result_sections

    evaluations = evaluate_into(model, name, config, split, output, progress=progress)
    if not evaluations:
        return
    show(render_terminal(result_sections([evaluation.row for evaluation in evaluations])))
    print_paths(output, "results.json", "samples.parquet")


def frontier_command(runs: list[Path], output: Path) -> None:
    """Accuracy against speed: every setting of one or more runs in one figure.

    Marks the settings that nothing of the same checkpoint beats in speed and accuracy, and
    sums each frontier up as AUP, the accuracy under parallelism of d3LLM.

    Examples:
      t3d eval --model runs/student --config sweep --output runs/sweep
      t3d frontier runs/sweep runs/other_sweep --output runs/frontier

    Args:
        runs: directories that hold a results.json, or such files.
        output: directory of frontier.md, frontier.png and frontier.json.
    """
    check_output(output, "frontier.json")
    rows = distinct_rows(runs)

    from t3d.evaluation.frontier import frontier
    from t3d.report.frontier import frontier_sections, write_frontier
    from t3d.report.sheets import render_terminal

    record = provenance(config={"runs": runs}, seed=0, model="", weights_hash=None)
    found = frontier(rows)
    write_frontier(output, found, provenance=record)
    show(render_terminal(frontier_sections(found)))
    print_paths(output, "frontier.md", "frontier.png", "frontier.json")


def calibrate_command(
    model: str,
    output: Path,
    split: Split = "dev",
    max_loss: float = 1.0,
    confidence: float = 0.95,
    speed: Speed = "tokens_per_forward",
    write: bool = True,
    *,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Find the fastest setting that keeps accuracy, and make it the default.

    Evaluates a grid on development problems, whose first setting is the full-step baseline,
    and accepts settings from slow to fast while their loss is small with the stated confidence.
    The choice goes into generation_config.json, which `t3d generate` follows.

    Example:
      t3d calibrate --model runs/demo/checkpoints/t3d --max_loss 2 --config sweep
          --output runs/calibration

    Args:
        model: a checkpoint directory.
        output: directory of results.json, samples.parquet and calibration.json.
        split: split of the benchmark.
        max_loss: largest loss of accuracy against the baseline, in points.
        confidence: probability with which all accepted settings lose no more than that.
        speed: number by which the fastest setting is found.
        write: write the choice into the checkpoint; otherwise it is only shown.
        progress: show progress bars.
    """
    if write and not Path(model).is_dir():
        raise ValueError(f"{model}: no checkpoint directory to write to; give --write false")
    config = GridConfig(**settings)

    from t3d.decoding.defaults import write_generation_config
    from t3d.evaluation.calibrate import check_limits, choose
    from t3d.experiment.grid import evaluate_into
    from t3d.report.tables import calibration_terminal

    check_limits(max_loss, confidence)
    evaluations = evaluate_into(model, None, config, split, output, progress=progress)
    if not evaluations:
        return
    full, *others = [evaluation.cell for evaluation in evaluations]
    choice = choose(others, full, max_loss=max_loss, confidence=confidence, speed=speed)
    write_json(output / "calibration.json", choice.document())
    show(calibration_terminal(choice))
    print_paths(output, "calibration.json")
    if write:
        write_generation_config(Path(model), choice.row.decoding)
        print_paths(Path(model), "generation_config.json")


def lm_eval_command(model: str, output: Path, *, progress: bool = True, **settings: Any) -> None:
    """Run generative tasks of lm-evaluation-harness on a checkpoint.

    Needs `pip install 't3d[lm-eval]'`. See docs/lm_eval.md.

    Example:
      t3d lm-eval --model my/checkpoint --tasks '[gsm8k_cot_zeroshot]' --output runs/lm_eval
          --decoding.denoising_steps 2 --decoding.max_new_tokens 512

    Args:
        model: a checkpoint directory, a Hub name, or mini_teacher.
        output: directory of lm_eval.json.
        progress: show progress bars.
    """
    config = HarnessConfig(**settings)

    from lm_eval.utils import make_table

    from t3d.interop.lm_eval import RESULTS, SAMPLES, evaluate_tasks
    from t3d.models.loading import from_pretrained

    # The harness prints to stdout, which belongs to the results.
    with redirect_stdout(sys.stderr):
        table = make_table(
            evaluate_tasks(
                from_pretrained(model, dtype=config.dtype), config, output, progress=progress
            )
        )
    print(table)
    print_paths(output, RESULTS, *[SAMPLES] * config.log_samples)


def analyze_command(
    trajectories: Path,
    output: Path,
    teacher: str = "mini_teacher",
    students: tuple[str, ...] = (),
    dtype: Dtype = "auto",
    *,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Measure on-policy risk and conditional total correlation on visited states.

    The teacher's total correlation is what no one-step student can remove; see docs/theory.md.

    Example:
      t3d analyze --trajectories runs/demo/trajectories --output runs/analysis
          --students '[runs/demo/checkpoints/naive_td, runs/demo/checkpoints/t3d]'

    Args:
        trajectories: a store that the teacher made.
        output: directory of analysis.json and analysis.md.
        teacher: a checkpoint directory, a Hub name, or mini_teacher.
        students: checkpoints that were distilled from it.
        dtype: number format of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU.
        progress: show progress bars.
    """
    config = AnalysisConfig(**settings)
    check_output(output, "analysis.json")

    from t3d.analysis.analyze import analyze
    from t3d.core.store import TrajectoryStore
    from t3d.models.loading import from_pretrained
    from t3d.report.sheets import render_terminal

    rows = TrajectoryStore.open(trajectories).read()
    # Columns of a table want short names.
    homes = [re.sub(r"[^/]+(/seed\d+)?$", "", os.path.abspath(name)) for name in students]
    shared = os.path.commonpath(homes or ["."])
    labels = [Path(teacher).name, *(os.path.relpath(name, shared) for name in students)]
    models = [
        replace(from_pretrained(name, dtype=dtype), name=label)
        for name, label in zip((teacher, *students), labels, strict=True)
    ]
    analysis = analyze(models[0], models[1:], rows, config, progress=progress)
    asked = asdict(config) | {"students": students, "dtype": models[0].dtype}
    weights_hash = models[0].weights_hash
    record = provenance(config=asked, seed=config.seed, model=teacher, weights_hash=weights_hash)
    analysis.save(output, record)
    show(render_terminal([analysis.section()]))
    print_paths(output, "analysis.json", "analysis.md")
