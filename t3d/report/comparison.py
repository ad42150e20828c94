"""A comparison of methods as tables, a figure and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import RenderableType

from t3d.core.files import write_bytes, write_json
from t3d.decoding.config import STATIC, DecodingConfig, labels, one_line
from t3d.evaluation.comparison import Comparison, Estimate
from t3d.evaluation.results import (
    ORIGINAL,
    Cell,
    Condition,
    ResultRow,
    save_results,
)
from t3d.report.figure import comparison_figure, save
from t3d.report.sheets import (
    NONE,
    Entry,
    Section,
    Sheet,
    order_methods,
    percent,
    render_markdown,
    render_terminal,
)
from t3d.report.tables import IN_TITLES, grading_sheet
from t3d.report.trajectories import Problem, write_html

FORMAT = 2
_MARKS = {1: "▲ ", 0: "", -1: "▼ "}


def write_comparison(
    directory: Path,
    cells: Sequence[Cell],
    *,
    recommended: str | None,
    provenance: Mapping[str, Any],
    problems: Sequence[Problem] = (),
) -> None:
    """Write `results.json`, `comparison.json`, `report.md`, `accuracy.png`, each atomically.

    Missing cells leave dashes, and without static settings there is no figure. Given problems,
    `trajectories.html` shows how each was decoded.

    Args:
        recommended: the method that the others are compared with; the original if None.

    Raises:
        ValueError: for cells that `Comparison` refuses.
    """
    comparison = Comparison(cells)
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        replace(row, recommended=recommended and method == recommended)
        for method in order_methods(comparison.methods)
        for row in comparison.rows(method)
    ]
    save_results(directory / "results.json", rows, dict(provenance))
    head = {"format": FORMAT, "provenance": dict(provenance), "recommended": recommended}
    write_json(directory / "comparison.json", head | comparison.document())
    text = "# Comparison\n\n"
    if comparison.speeds:
        save(comparison_figure(comparison, recommended), directory / "accuracy.png")
        text += "![Accuracy against tokens per step](accuracy.png)\n\n"
    if problems:
        write_html(directory / "trajectories.html", problems)
        text += "[Decoding trajectories](trajectories.html), token by token.\n\n"
    text += render_markdown(_sections(comparison, recommended))
    write_bytes(directory / "report.md", text.encode())


def comparison_terminal(cells: Sequence[Cell], recommended: str | None) -> RenderableType:
    """The tables for a terminal of 80 columns or more.

    Raises:
        ValueError: for cells that `Comparison` refuses.
    """
    return render_terminal(_sections(Comparison(cells), recommended))


def comparison_markdown(cells: Sequence[Cell], recommended: str | None) -> str:
    """The same tables in GitHub's Markdown.

    Raises:
        ValueError: for cells that `Comparison` refuses.
    """
    return render_markdown(_sections(Comparison(cells), recommended))


def _name(method: str, recommended: str | None) -> Entry:
    return Entry(method, "(recommended)" if method == recommended else "")


def _accuracy(estimate: Estimate | None, bold: bool = False) -> Entry:
    if estimate is None:
        return Entry(NONE)
    interval = f"[{percent(estimate.low)}, {percent(estimate.high)}]"
    return Entry(percent(estimate.value), interval, bold)


def _signed(estimate: Estimate | None, *, mark: bool = False, digits: int = 1) -> Entry:
    """A number in % with its sign; `mark` adds an arrow if its interval lies on one side of 0."""
    if estimate is None:
        return Entry(NONE)
    value, low, high = (
        f"{100 * x:+z.{digits}f}" for x in (estimate.value, estimate.low, estimate.high)
    )
    return Entry((_MARKS[estimate.sign] if mark else "") + value, f"[{low}, {high}]")


def _best(estimates: Mapping[str, Estimate | None]) -> set[str]:
    """The methods of the highest value, where there are several to choose from."""
    values = {method: e.value for method, e in estimates.items() if e is not None}
    top = max(values.values(), default=None)
    return {m for m, value in values.items() if value == top} if len(values) > 1 else set()


def _where(condition: Condition, comparison: Comparison) -> str:
    """The block size, the task where there are several, and other differences of the settings."""
    task = f"{condition.task}\n" if len(comparison.num_problems) > 1 else ""
    own = condition.decoding
    details = _labels(comparison, is_static=True)[own].removeprefix(own.label)
    return f"{task}block {own.block_size}{details}"


def _labels(comparison: Comparison, *, is_static: bool) -> dict[DecodingConfig, str]:
    settings = (one.decoding for one in comparison.conditions)
    return labels((s for s in settings if (s.remasking == STATIC) == is_static), beside=IN_TITLES)


def _place(condition: Condition) -> tuple[Any, ...]:
    """The key of a column: everything that its settings of several speeds have in common."""
    return condition.task, *replace(condition.decoding, denoising_steps=1).rank


def _few_step_sheet(c: Comparison, temperature: float, recommended: str | None) -> Sheet:
    groups: list[list[list[Entry]]] = []
    speeds = {s: found for (t, s), found in c.speeds.items() if t == temperature and s > 1}
    # Settings of one speed that differ in anything else have separate columns.
    columns: dict[tuple[Any, ...], str] = {}
    for one in sorted((one for found in speeds.values() for one in found), key=_place):
        columns[_place(one)] = _where(one, c)
    for speed, conditions in speeds.items():
        group: list[list[Entry]] = []
        place = {_place(one): [one] for one in conditions}
        # An empty list of conditions has no statistics: a dash.
        settings = [place.get(column, []) for column in columns] + [conditions]
        found = [{m: c.accuracy(m, *setting) for m in c.methods} for setting in settings]
        best = [_best(estimates) for estimates in found]
        for method in order_methods(c.methods):
            entries = [
                _accuracy(estimates[method], method in top)
                for estimates, top in zip(found, best, strict=True)
            ]
            names = [Entry(f"{speed:.3g}"), _name(method, recommended)]
            improved = None if method == ORIGINAL else c.improvement(method, *conditions)
            group.append([*names, *entries, _signed(improved, digits=0)])
        groups.append(group)
    note = (
        "Accuracy in %, mean over seeds. Mean: over the columns before it. Improvement: that mean "
        "relative to the original's, in %. Bold: the highest of a column. "
        f"{_intervals(c)}"
    )
    header = ["tokens/\nstep", "method", *columns.values()]
    title = f"Static few-step decoding, temperature {temperature:g}"
    return Sheet(title, [*header, "mean", "improvement\n(%)"], groups, note)


def _intervals(c: Comparison) -> str:
    if c.has_one_seed:
        return (
            "Brackets: 95 % intervals of a bootstrap over problems. How much seeds differ is not "
            "in them: every method has one."
        )
    return "Brackets: 95 % intervals of a bootstrap over seeds and problems."


def _full_step_sheet(c: Comparison, conditions: list[Condition], recommended: str | None) -> Sheet:
    found = [{m: c.accuracy(m, one) for m in c.methods} for one in conditions]
    best = [_best(estimates) for estimates in found]
    lines = []
    for method in order_methods(c.methods):
        line = [_name(method, recommended)]
        for one, estimates, top in zip(conditions, found, best, strict=True):
            line.append(_accuracy(estimates[method], method in top))
            other = None if method == ORIGINAL else c.difference(method, ORIGINAL, one)
            line.append(_signed(other, mark=True))
        lines.append(line)
    header = ["method"]
    for one in conditions:
        header += [_where(one, c), "minus\noriginal"]
    title = f"Full-step decoding, temperature {conditions[0].decoding.temperature:g}"
    note = (
        "One token a step: accuracy in % and its difference to the original's in points. "
        "▲, ▼: the interval of the difference excludes 0. Bold: the highest of a column. "
        f"{_intervals(c)}"
    )
    return Sheet(title, header, [lines], note, num_names=1)


def _gap_sheet(c: Comparison, conditions: list[Condition], recommended: str | None) -> Sheet:
    lines = [
        [_name(method, recommended), *(_accuracy(c.gap_closed(method, one)) for one in conditions)]
        for method in order_methods(c.methods)
        if method != ORIGINAL
    ]
    header = [
        f"{_where(one, c)}\n{one.decoding.tokens_per_step:.3g} tokens/step" for one in conditions
    ]
    title = f"Share of the few-step gap closed, temperature {conditions[0].decoding.temperature:g}"
    note = (
        "(accuracy - original) / (original at full steps - original) in %: 0 is the original at "
        "the same setting, 100 its full-step accuracy."
    )
    return Sheet(title, ["method", *header], [lines], note, num_names=1)


def _dynamic_sheet(c: Comparison, condition: Condition, recommended: str | None) -> Sheet:
    accuracy = {method: c.accuracy(method, condition) for method in c.methods}
    best = _best(accuracy)
    lines = []
    for method in order_methods(c.methods):
        rows = c.rows(method, condition)
        numbers = [Entry(text) for text in (_speed_numbers(rows) if rows else [NONE] * 5)]
        share = _accuracy(accuracy[method], method in best)
        lines.append([_name(method, recommended), *numbers, share])
    header = ["method", "tokens/\ns", "latency\n(s)", "steps", "length", "tokens/\nforward"]
    how = one_line(_labels(c, is_static=False)[condition.decoding])
    title = f"{condition.task}, block size {condition.decoding.block_size}, {how}"
    note = (
        "Means over seeds. Tokens count up to and including the stop token; latency is measured "
        "at batch 1; steps are denoising passes and length is tokens, both a response."
    )
    title += f", temperature {condition.decoding.temperature:g}"
    return Sheet(title, [*header, "accuracy\n(%)"], [lines], note, num_names=1)


def _speed_numbers(rows: Sequence[ResultRow]) -> list[str]:
    latency = [row.latency_seconds for row in rows if row.latency_seconds is not None]
    return [
        f"{mean(row.tokens_per_second for row in rows):.1f}",
        f"{mean(latency):.3f}" if latency else NONE,
        f"{mean(row.average_steps for row in rows):.1f}",
        f"{mean(row.average_length for row in rows):.1f}",
        f"{mean(row.tokens_per_forward for row in rows):.2f}",
    ]


def _difference_sheet(c: Comparison, conditions: list[Condition], base: str) -> Sheet:
    """Conditions of one task, temperature and block size."""
    lines = [
        [Entry(m), *(_signed(c.difference(m, base, one), mark=True) for one in conditions)]
        for m in order_methods(c.methods)
        if m != base
    ]
    one = conditions[0]
    d = one.decoding
    title = f"{one.task}, block size {d.block_size}, temperature {d.temperature:g}"
    note = (
        f"Accuracy minus that of {base}, in points, paired by problem and by seed where both have "
        f"the same. ▲: above {base}, ▼: below it, where the interval excludes 0; intervals are "
        f"not corrected for their number. {_intervals(c)}"
    )
    names = labels((one.decoding for one in conditions), beside=IN_TITLES)
    header = ["method", *names.values()]
    return Sheet(title, header, [lines], note, num_names=1)


def _budget_sheet(c: Comparison, recommended: str | None) -> Sheet:
    lines = []
    for method in order_methods(c.methods):
        rows = c.rows(method)
        seeds = sorted({row.seed for row in rows})
        lines.append(
            [
                _name(method, recommended),
                Entry(", ".join(map(str, seeds))),
                Entry(_range([row.optimizer_steps for row in rows])),
                Entry(_range([row.tokens_seen for row in rows])),
            ]
        )
    header = ["method", "seeds", "optimizer\nsteps", "tokens\nseen"]
    note = "What each seed was trained with; a range where seeds differ."
    return Sheet("Training budget", header, [lines], note)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _sections(c: Comparison, recommended: str | None) -> list[Section]:
    temperatures = sorted({one.decoding.temperature for one in c.conditions})
    accuracy: list[Sheet] = []
    speed: list[Sheet] = []
    differences: list[Sheet] = []
    grading: list[Sheet] = []
    base = recommended or ORIGINAL
    for temperature in temperatures:
        same = [one for one in c.conditions if one.decoding.temperature == temperature]
        static = [one for one in same if one.decoding.remasking == STATIC]
        few = [one for one in static if one != one.full]
        full = [one for one in static if one == one.full]
        if few:
            accuracy.append(_few_step_sheet(c, temperature, recommended))
        if full:
            accuracy.append(_full_step_sheet(c, full, recommended))
        gaps = [one for one in few if one.full in full]
        if gaps:
            accuracy.append(_gap_sheet(c, gaps, recommended))
        for task in sorted({one.task for one in same}):
            own = [one for one in same if one.task == task]
            dynamic = [one for one in own if one.decoding.remasking != STATIC]
            speed += [_dynamic_sheet(c, one, recommended) for one in dynamic]
            for size in sorted({one.decoding.block_size for one in own}):
                columns = [one for one in own if one.decoding.block_size == size]
                differences.append(_difference_sheet(c, columns, base))
                rows = [row for m in c.methods for one in columns for row in c.rows(m, one)]
                where = f"{task}, block size {size}, temperature {temperature:g}"
                grading += grading_sheet(rows, where)
    problems = ", ".join(f"{num} of {task}" for task, num in sorted(c.num_problems.items()))
    heading = f"Accuracy, n = {problems}"
    sections: list[Section] = [(heading, accuracy)] if accuracy else []
    sections += [("Dynamic decoding", speed)] if speed else []
    grades: list[Section] = [("Grading", grading)] if grading else []
    return [
        *sections,
        (f"Differences to {base}", differences),
        *grades,
        ("Budget", [_budget_sheet(c, recommended)]),
    ]
