"""Commands that show: report, view, generate."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from t3d.cli.common import distinct_rows, print_paths, results_file, show
from t3d.core.dtypes import Dtype
from t3d.core.files import check_file, check_output, make_directory, read_object
from t3d.core.ranges import check_number
from t3d.core.rng import derive_key
from t3d.decoding.config import DecodingConfig
from t3d.tasks import GENERATED, Example, Grade, ProtocolName, Split, Task, get_task


def report_command(
    runs: list[Path],
    output: Path | None = None,
    html: Path | None = None,
    num_examples: int = 20,
) -> None:
    """Show the results of one or more runs together.

    Rows that runs share, such as the original model's, count once.

    Examples:
      t3d report runs/seed0 runs/seed1 --output runs/report
      t3d report runs/demo --html demo.html

    Args:
        runs: directories that hold a results.json, or such files.
        output: also write report.md and accuracy.png to this directory.
        html: also write one HTML file for colleagues: tables, frontier, training curves, examples
            and provenance.
        num_examples: problems whose decoding that file shows.
    """
    if output is not None:
        check_output(output, "report.md")
    if html is not None:
        check_file(html)
    check_number("num_examples", num_examples, "[0, inf)", whole=True)
    rows = distinct_rows(runs)

    from t3d.report.frontier import write_report
    from t3d.report.sheets import render_terminal
    from t3d.report.tables import result_sections

    tables = render_terminal(result_sections(rows))
    if output is not None:
        write_report(output, rows)
    if html is not None:
        from t3d.report.document import write_document

        make_directory(html.parent)
        write_document(html, rows, list(map(results_file, runs)), num_examples=num_examples)
    show(tables)
    if output is not None:
        print_paths(output, "report.md", "accuracy.png")
    if html is not None:
        print(html)


def view_command(
    sources: list[Path],
    output: Path = Path("trajectories.html"),
    model: str | None = None,
    num_problems: int | None = None,
) -> None:
    """Write one HTML page on which decoding can be watched, filtered and replayed.

    Two models or settings stand side by side, matched by question: those of one run or
    evaluation, or of several sources. The page needs nothing but a browser.

    Examples:
      t3d view runs/demo
      t3d view runs/demo/trajectories --output teacher.html
      t3d view runs/teacher_eval runs/student_eval --output compared.html

    Args:
        sources: trajectory stores, folders of `t3d eval`, or runs.
        output: the HTML file.
        model: the checkpoint that made the tokens, where the one that a source names has moved.
        num_problems: how many problems at most; by default all.
    """
    check_file(output)
    if num_problems is not None:
        check_number("num_problems", num_problems, "[1, inf)", whole=True)

    from t3d.report.sources import read_problems
    from t3d.report.trajectories import write_html

    problems = read_problems(sources, model=model, num_problems=num_problems)
    make_directory(output.parent)
    write_html(output, problems)
    print(output)


def generate_command(
    question: str | None = None,
    model: str = "mini_teacher",
    task: str | None = None,
    index: int = 0,
    split: Split = "test",
    data: Path | None = None,
    protocol: ProtocolName = "standard",
    decoding: DecodingConfig = DecodingConfig(),  # noqa: B008
    dtype: Dtype = "auto",
    seed: int = 0,
    unsafe_exec: bool = False,
    show_steps: bool | None = None,
) -> None:
    """Answer one question.

    It is yours, or with --task a benchmark's: then question, gold answer and verdict are shown
    too. All of that goes to stdout; the order in which tokens were decoded, to stderr.

    Examples:
      t3d generate --task mini_gsm --decoding.denoising_steps 1
      t3d generate --model runs/student --task gsm8k --index 7
      t3d generate --model my/checkpoint 'What is 3 + 4?'
      t3d generate --model my/checkpoint - < question.txt

    Args:
        question: the question, or - to read it from stdin; or give --task.
        model: a checkpoint directory, a Hub name, or mini_teacher.
        task: the benchmark whose problem is shown and graded, or a .jsonl or a folder of your
            own.
        index: number of the problem in the split, from 0.
        split: split of the benchmark.
        data: folder of the benchmark's files; by default what `t3d data download` fetched.
        protocol: standard, or t3d for the prompts and tests of T3D's authors byte for byte.
        decoding: how the answer is decoded, unless given as `t3d calibrate` found for the model;
            max_new_tokens is cut to what fits the model.
        dtype: number format of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU.
        seed: seed of candidate sampling.
        unsafe_exec: run the programs of code benchmarks without the sandbox.
        show_steps: colour the tokens by their denoising step; by default on a terminal.
    """
    if (question is None) == (task is None):
        raise ValueError("give a QUESTION, or one of a benchmark's with --task mini_gsm; not both")
    if task is None:
        text = (sys.stdin.read() if question == "-" else str(question)).strip()
        if not text:
            raise ValueError("the question is empty; there is nothing to answer")
        benchmark, problem = None, Example("question", text)
    else:
        benchmark = get_task(task, data=data, protocol=protocol, unsafe_exec=unsafe_exec)
        problem = _problem(task, benchmark, split, index)

    from rich.console import Console

    from t3d.decoding.build import make_decoder
    from t3d.decoding.defaults import read_generation_config
    from t3d.decoding.request import Request
    from t3d.models.loading import from_pretrained
    from t3d.report.trajectories import render_responses, view_of

    lm = from_pretrained(model, dtype=dtype)
    known = only_tasks(model)
    if known and not any(GENERATED[name]().is_problem(problem.question) for name in known):
        print(
            f"t3d: {model} knows generated problems of {' and '.join(known)} only, and this is "
            f"none: its answer means nothing; see one with `t3d generate --task {known[0]}`",
            file=sys.stderr,
        )
    if decoding == DecodingConfig():
        decoding = read_generation_config(Path(model)) or decoding
    (prompt,) = lm.encode_examples([problem])
    room = lm.model.config.max_position_embeddings - len(prompt)
    if room > 0:
        new = min(decoding.max_new_tokens, room)
        decoding = dataclasses.replace(decoding, max_new_tokens=new)
    # The random numbers of `t3d eval` for a problem, and those of `t3d.generate` otherwise.
    key = derive_key(seed, 0) if benchmark is None else derive_key(seed, "evaluate", problem.id)
    (completion,) = make_decoder(lm, decoding, 1).decode([Request(prompt, key)])
    output = lm.decode(completion.token_ids)
    grade = None if benchmark is None else benchmark.grade([problem], [output])[0]
    if sys.stdout.isatty() if show_steps is None else show_steps:
        view = view_of(
            completion,
            lambda token: lm.text([token]),
            title=f"{model}, {decoding.denoising_steps} steps a block of {decoding.block_size}",
            prompt_length=len(prompt),
            block_size=decoding.block_size,
            grade=grade,
        )
        Console(stderr=True).print(render_responses(problem.question, [view]), "")
    if grade is None:
        print(output)
    else:
        _print_graded(problem, output, grade)


def _problem(name: str, task: Task, split: Split, index: int) -> Example:
    """One problem that can be graded.

    Raises:
        ValueError: for an index that the split does not have, or a problem without gold answer.
    """
    if index < 0:
        raise ValueError(f"index must be at least 0, got {index}")
    problems = task.examples(split, index + 1)
    if index >= len(problems):
        raise ValueError(
            f"{name}: no problem {index}; its split {split!r} has {len(problems)}, from 0 on"
        )
    problem = problems[index]
    if problem.answer is None and problem.reference is None and problem.program is None:
        raise ValueError(f"{name}: {problem.id!r} has no gold answer to grade against")
    return problem


def only_tasks(model: str) -> list[str]:
    """The generated tasks that are all that a checkpoint, trained from random weights, has learned.

    Empty for a model that knows more, or whose provenance does not say.
    """
    from t3d.models.tokenizers import BUILT_IN

    path = BUILT_IN.get(model, Path(model)) / "provenance.json"
    record = read_object(path) if path.is_file() else None
    while record is not None and record["model"] != "new":
        if "base" not in record:
            return only_tasks(record["model"])
        record = record["base"]
    if record is None or record["config"]["data"] is not None:
        return []
    task = record["config"]["task"]
    names = [task] if isinstance(task, str) else task
    return names if set(names) <= set(GENERATED) else []


def _print_graded(problem: Example, output: str, grade: Grade) -> None:
    """Print the problem, the response, the gold answer and the verdict."""
    worked = problem.reference and f"{problem.prefix}{problem.reference}"
    gold = problem.answer or worked or "what passes its tests"
    read = "no final answer" if grade.final_answer is None else f"answered {grade.final_answer}"
    verdict = "right" if grade.correct else f"wrong ({grade.reason or read})"
    print(f"question: {problem.question}")
    print(f"response: {problem.prefix}{output}")
    print(f"gold:     {gold}")
    print(f"verdict:  {verdict}")
