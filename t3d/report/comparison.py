"""A comparison of methods as tables, a figure and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import RenderableType

from benchmarks.orderings import COLLAPSED, KEPT, ORDERINGS, T3D, Finding, findings, verdict
from t3d.core.files import write_bytes, write_json
from t3d.evaluation.comparison import Comparison, Estimate
from t3d.evaluation.results import (
    ORIGINAL,
    STATIC,
    Cell,
    ComparisonRow,
    Condition,
    ResultRow,
    save_results,
)
from t3d.report.comparison_plot import comparison_plot
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
from t3d.report.tables import Setting

FORMAT = 1
_MARKS = {1: "▲ ", 0: "", -1: "▼ "}


def write_comparison(
    directory: Path,
    cells: Sequence[Cell],
    *,
    recommended: str | None,
    provenance: Mapping[str, Any],
) -> None:
    """Write `results.json`, `comparison.json`, `report.md` and `accuracy.png`, each atomically.

    Missing cells leave dashes, and without static settings there is no figure.

    Args:
        recommended: the method that the others are compared with; the original if None.

    Raises:
        ValueError: for cells that `Comparison` refuses.
    """
    comparison = Comparison(cells)
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        ComparisonRow(**{**vars(row), "recommended": row.method == recommended})
        for method in order_methods(comparison.methods)
        for row in comparison.rows(method)
    ]
    save_results(directory / "results.json", rows, dict(provenance))
    write_json(directory / "comparison.json", _document(comparison, recommended, provenance))
    figure = ""
    if comparison.speeds:
        comparison_plot(comparison, directory / "accuracy.png", recommended)
        figure = "![Accuracy against tokens per step](accuracy.png)\n\n"
    text = f"# Comparison\n\n{figure}{render_markdown(_sections(comparison, recommended))}"
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


def _document(
    comparison: Comparison, recommended: str | None, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What `comparison.json` holds."""
    orderings = [
        {
            "method": method,
            "ordering": letter,
            "claim": ORDERINGS[letter],
            "verdict": verdict(found),
            "findings": [{**asdict(one), "verdict": one.verdict} for one in found],
        }
        for method in dict.fromkeys((T3D, recommended or T3D))
        for letter, found in _by_letter(findings(comparison, method)).items()
    ]
    head = {"format": FORMAT, "provenance": dict(provenance), "recommended": recommended}
    return {**head, **comparison.document(), "orderings": orderings}


def _by_letter(found: Sequence[Finding]) -> dict[str, list[Finding]]:
    return {letter: [f for f in found if f.ordering == letter] for letter in ORDERINGS}


def _name(method: str, recommended: str | None) -> Entry:
    return Entry(method, "(recommended)" if method == recommended else "")


def _accuracy(estimate: Estimate | None, bold: bool = False) -> Entry:
    if estimate is None:
        return Entry(NONE)
    interval = f"[{percent(estimate.low)}, {percent(estimate.high)}]"
    return Entry(percent(estimate.value), interval, bold)


def _signed(estimate: Estimate | None, *, mark: bool = False, digits: int = 1) -> Entry:
    """In %, with its sign; `mark` points to the side of 0 that the interval lies on."""
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
    """The block size, and the task where there are several."""
    task = f"{condition.task}\n" if len(comparison.num_problems) > 1 else ""
    return f"{task}block {condition.block_size}"


def _few_step_sheet(c: Comparison, temperature: float, recommended: str | None) -> Sheet:
    groups: list[list[list[Entry]]] = []
    speeds = {s: found for (t, s), found in c.speeds.items() if t == temperature and s > 1}
    columns = dict.fromkeys(
        (one.task, one.block_size, _where(one, c)) for found in speeds.values() for one in found
    )
    columns = sorted(columns)
    for speed, conditions in speeds.items():
        group: list[list[Entry]] = []
        place = {(one.task, one.block_size): [one] for one in conditions}
        # An empty list of conditions has no statistics: a dash.
        settings = [place.get((task, size), []) for task, size, _ in columns] + [conditions]
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
    header = ["tokens/\nstep", "method", *(name for _, _, name in columns)]
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
    title = f"Full-step decoding, temperature {conditions[0].temperature:g}"
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
    header = [f"{_where(one, c)}\n{one.tokens_per_step:.3g} tokens/step" for one in conditions]
    title = f"Share of the few-step gap closed, temperature {conditions[0].temperature:g}"
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
    how = Setting.of(condition).label.replace("\n", ", ")
    title = f"{condition.task}, block size {condition.block_size}, {how}"
    note = (
        "Means over seeds. Tokens count up to and including the stop token; latency is measured "
        "at batch 1; steps are denoising passes and length is tokens, both a response."
    )
    title += f", temperature {condition.temperature:g}"
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
    title = f"{one.task}, block size {one.block_size}, temperature {one.temperature:g}"
    note = (
        f"Accuracy minus that of {base}, in points, paired by problem and by seed where both have "
        f"the same. ▲: above {base}, ▼: below it, where the interval excludes 0; intervals are "
        f"not corrected for their number. {_intervals(c)}"
    )
    header = ["method", *(Setting.of(one).label for one in conditions)]
    return Sheet(title, header, [lines], note, num_names=1)


def _ordering_sheet(c: Comparison, method: str, letters: str) -> Sheet:
    groups = []
    for letter, found in _by_letter(findings(c, method)).items():
        if letter not in letters:
            continue
        head = [Entry(f"({letter})"), Entry(""), Entry(ORDERINGS[letter])]
        group = [[*head, Entry(""), Entry(""), Entry(""), Entry(verdict(found), bold=True)]]
        for one in found:
            where = _where(one.condition, c).replace("\n", ", ")
            names = [Entry(""), Entry(where), Entry(one.claim)]
            shares = [Entry(percent(one.left)), Entry(percent(one.right))]
            group.append([*names, *shares, _signed(one.margin), Entry(one.verdict)])
        groups.append(group)
    header = ["", "where", "claim", "left", "right", "margin", "verdict"]
    note = (
        "Left and right of the claim in %, and their difference. A claim holds if the interval is "
        "above 0, does not hold if it is below 0, and is undecided if it includes 0; an ordering "
        "holds if all its claims do and does not hold if any does not. Collapse: less than "
        f"{COLLAPSED:g} of the full-step accuracy is left. Full-step decoding is kept above "
        f"{KEPT:g} of the original's accuracy and lost below it."
    )
    return Sheet(f"Published orderings, with {method} as T3D", header, groups, note, num_names=3)


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
    temperatures = sorted({one.temperature for one in c.conditions})
    accuracy: list[Sheet] = []
    speed: list[Sheet] = []
    differences: list[Sheet] = []
    base = recommended or ORIGINAL
    for temperature in temperatures:
        same = [one for one in c.conditions if one.temperature == temperature]
        static = [one for one in same if one.remasking == STATIC]
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
            dynamic = [one for one in own if one.remasking != STATIC]
            speed += [_dynamic_sheet(c, one, recommended) for one in dynamic]
            for size in sorted({one.block_size for one in own}):
                columns = [one for one in own if one.block_size == size]
                differences.append(_difference_sheet(c, columns, base))
    orderings = [_ordering_sheet(c, T3D, "abcd")]
    if recommended is not None and recommended != T3D:
        orderings.append(_ordering_sheet(c, recommended, "bd"))
    problems = ", ".join(f"{num} of {task}" for task, num in sorted(c.num_problems.items()))
    heading = f"Accuracy, n = {problems}"
    sections: list[Section] = [(heading, accuracy)] if accuracy else []
    sections += [("Dynamic decoding", speed)] if speed else []
    return [
        *sections,
        (f"Differences to {base}", differences),
        ("Orderings", orderings),
        ("Budget", [_budget_sheet(c, recommended)]),
    ]
