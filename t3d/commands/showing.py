"""Commands that show: report, generate."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from t3d.commands.common import distinct_rows, print_paths, show
from t3d.decoding.config import DecodingConfig


def report_command(runs: list[Path], output: Path | None = None) -> None:
    """Show the results of one or more runs together.

    Rows that runs share, such as the original model's, count once.

    Example:
      t3d report runs/seed0 runs/seed1 --output runs/report

    Args:
        runs: directories that hold a results.json.
        output: also write report.md and accuracy.png to this directory.
    """
    rows = distinct_rows(runs)

    from t3d.report.page import write_report
    from t3d.report.tables import terminal_tables

    tables = terminal_tables(rows)
    if output is not None:
        write_report(output, rows)
    show(tables)
    if output is not None:
        print_paths(output, "report.md", "accuracy.png")


def generate_command(
    question: str,
    model: str = "mini_teacher",
    decoding: DecodingConfig = DecodingConfig(),  # noqa: B008
    seed: int = 0,
    show_steps: bool | None = None,
) -> None:
    """Answer one question.

    The answer goes to stdout; the order in which its tokens were decoded, to stderr.

    Examples:
      t3d generate 'Tom has 3 apples. On Monday Tom finds 4. How many apples are left?'
      t3d generate --model runs/student --decoding.denoising_steps 1 - < question.txt

    Args:
        question: the question, or - to read it from stdin.
        model: a checkpoint directory, a Hub name, or mini_teacher.
        decoding: how the answer is decoded, unless given as `t3d calibrate` found for the model;
            max_new_tokens is cut to what fits the model.
        seed: of candidate sampling.
        show_steps: colour the tokens by their denoising step; by default on a terminal.
    """
    text = (sys.stdin.read() if question == "-" else question).strip()
    if not text:
        raise ValueError("the question is empty; there is nothing to answer")

    from rich.console import Console

    from t3d.decoding.build import generate
    from t3d.evaluation.calibrate import read_generation_config
    from t3d.grid import load
    from t3d.report.trajectories import render_terminal, view_of

    lm = load(model)
    if decoding == DecodingConfig():
        decoding = read_generation_config(Path(model)) or decoding
    prompt = lm.encode_prompt(text)
    room = lm.model.config.max_position_embeddings - len(prompt)
    if room > 0:
        new = min(decoding.max_new_tokens, room)
        decoding = dataclasses.replace(decoding, max_new_tokens=new)
    (completion,) = generate(lm, [text], decoding, seed=seed)
    if sys.stdout.isatty() if show_steps is None else show_steps:
        view = view_of(
            completion,
            lambda token: str(lm.tokenizer.decode([token])),
            title=f"{model}, {decoding.denoising_steps} steps a block of {decoding.block_size}",
            prompt_length=len(prompt),
            block_size=decoding.block_size,
        )
        Console(stderr=True).print(render_terminal(text, [view]), "")
    print(lm.decode(completion.token_ids))
