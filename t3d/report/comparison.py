"""A comparison of methods as tables, a figure and files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from t3d.core.files import write_bytes, write_json
from t3d.decoding.config import STATIC, DecodingConfig, labels, one_line
from t3d.evaluation.comparison import Comparison, Estimate
from t3d.evaluation.results import ORIGINAL, Cell, Condition, save_results
from t3d.report.figure import comparison_figure, save
from t3d.report.sheets import (
    NONE,
    Entry,
    Section,
    Sheet,
    order_methods,
    percent,
    render_latex,
    render_markdown,
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
    self_distilled: Collection[str] = (),
    problems: Sequence[Problem] = (),
) -> None:
    """Write results.json, comparison.json, report.md, report.tex and accuracy.png, each atomically.

    Missing cells leave dashes, and without static settings there is no figure. Given problems,
    `trajectories.html` shows how each was decoded.

    Args:
        recommended: the method that the others are compared with; the original if None.
        self_distilled: the methods that learn from what their teacher decodes, without labels.

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
    head = {
        "format": FORMAT,
        "provenance": dict(provenance),
        "recommended": recommended,
        "self_distilled": sorted(self_distilled),
    }
    write_json(directory / "comparison.json", head | comparison.document())
    text = "# Comparison\n\n"
    if comparison.speeds:
        save(comparison_figure(comparison, recommended), directory / "accuracy.png")
        text += "![Accuracy against tokens per step](accuracy.png)\n\n"
    if problems:
        write_html(directory / "trajectories.html", problems)
        text += "[Decoding trajectories](trajectories.html), token by token.\n\n"
    sections = comparison_sections(comparison, recommended, self_distilled)
    write_bytes(directory / "report.md", (text + render_markdown(sections)).encode())
    write_bytes(directory / "report.tex", render_latex(sections).encode())


Column = tuple[str, Mapping[str, Entry]]
"""A column's name, and each method's entry in it."""


def _lines(c: Comparison, columns: Sequence[Column], *, without: str = "") -> list[list[Entry]]:
    """The lines of a table, one a method."""
    methods = [method for method in order_methods(c.methods) if method != without]
    return [[entries[method] for _, entries in columns] for method in methods]


def _method_sheet(
    c: Comparison, title: str, columns: Sequence[Column], note: str, *, without: str = ""
) -> Sheet:
    """A table of one line a method, whose name is the first column."""
    header = [name for name, _ in columns]
    return Sheet(title, header, [_lines(c, columns, without=without)], note, num_names=1)


def _accuracies(c: Comparison, name: str, conditions: Sequence[Condition]) -> Column:
    """The accuracies over some conditions; bold is the highest, if there are several."""
    found = {method: c.accuracy(method, *conditions) for method in c.methods}
    values = [estimate.value for estimate in found.values() if estimate is not None]
    top = max(values) if len(values) > 1 else None
    return name, {m: _share(e, e is not None and e.value == top) for m, e in found.items()}


def _share(estimate: Estimate | None, bold: bool = False) -> Entry:
    if estimate is None:
        return Entry(NONE)
    interval = f"[{percent(estimate.low)}, {percent(estimate.high)}]"
    return Entry(percent(estimate.value), interval, bold)


def _differences(c: Comparison, name: str, base: str, one: Condition) -> Column:
    """The differences to one method, which has none to itself."""
    others = {m: None if m == base else c.difference(m, base, one) for m in c.methods}
    return name, {m: _signed(estimate, mark=True) for m, estimate in others.items()}


def _signed(estimate: Estimate | None, *, mark: bool = False, digits: int = 1) -> Entry:
    """A number in % with its sign; `mark` adds an arrow if its interval lies on one side of 0."""
    if estimate is None:
        return Entry(NONE)
    value, low, high = (
        f"{100 * x:+z.{digits}f}" for x in (estimate.value, estimate.low, estimate.high)
    )
    return Entry((_MARKS[estimate.sign] if mark else "") + value, f"[{low}, {high}]")


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


def _few_step_sheet(c: Comparison, temperature: float, names: Sequence[Column]) -> Sheet:
    speeds = {s: found for (t, s), found in c.speeds.items() if t == temperature and s > 1}
    # Settings of one speed that differ in anything else have separate columns.
    ordered = sorted((one for found in speeds.values() for one in found), key=_place)
    places = {_place(one): _where(one, c) for one in ordered}
    own = [name for name, _ in names]
    header = ["tokens/\nstep", *own, *places.values(), "mean", "improvement\n(%)"]
    groups = []
    for speed, conditions in speeds.items():
        # An empty list of conditions has no statistics: a dash.
        columns = [*names]
        columns += [
            _accuracies(c, name, [one for one in conditions if _place(one) == place])
            for place, name in places.items()
        ]
        better = {m: None if m == ORIGINAL else c.improvement(m, *conditions) for m in c.methods}
        columns += [
            _accuracies(c, "mean", conditions),
            ("improvement", {m: _signed(e, digits=0) for m, e in better.items()}),
        ]
        groups.append([[Entry(f"{speed:.3g}"), *line] for line in _lines(c, columns)])
    note = (
        "Accuracy in %, mean over seeds. Mean: over the columns before it. Improvement: that mean "
        "relative to the original's, in %. Bold: the highest of a column. "
        f"{_intervals(c)}"
    )
    title = f"Static few-step decoding, temperature {temperature:g}"
    return Sheet(title, header, groups, note, num_names=1 + len(names))


def _intervals(c: Comparison) -> str:
    if c.has_one_seed:
        return (
            "Brackets: 95 % intervals of a bootstrap over problems. How much seeds differ is not "
            "in them: every method has one."
        )
    return "Brackets: 95 % intervals of a bootstrap over seeds and problems."


def _full_step_sheet(c: Comparison, conditions: list[Condition], names: Column) -> Sheet:
    columns = [names]
    for one in conditions:
        columns.append(_accuracies(c, _where(one, c), [one]))
        columns.append(_differences(c, "minus\noriginal", ORIGINAL, one))
    title = f"Full-step decoding, temperature {conditions[0].decoding.temperature:g}"
    note = (
        "One token a step: accuracy in % and its difference to the original's in points. "
        "▲, ▼: the interval of the difference excludes 0. Bold: the highest of a column. "
        f"{_intervals(c)}"
    )
    return _method_sheet(c, title, columns, note)


def _gap_sheet(c: Comparison, conditions: list[Condition], names: Column) -> Sheet:
    columns = [names]
    for one in conditions:
        name = f"{_where(one, c)}\n{one.decoding.tokens_per_step:.3g} tokens/step"
        columns.append((name, {m: _share(c.gap_closed(m, one)) for m in c.methods}))
    title = f"Share of the few-step gap closed, temperature {conditions[0].decoding.temperature:g}"
    note = (
        "(accuracy - original) / (original at full steps - original) in %: 0 is the original at "
        "the same setting, 100 its full-step accuracy."
    )
    return _method_sheet(c, title, columns, note, without=ORIGINAL)


def _dynamic_sheet(c: Comparison, condition: Condition, names: Column) -> Sheet:
    rows = {method: c.rows(method, condition) for method in c.methods}

    def means(name: str, field: str, digits: int) -> Column:
        entries = {}
        for method, own in rows.items():
            values = [getattr(row, field) for row in own if getattr(row, field) is not None]
            entries[method] = Entry(f"{mean(values):.{digits}f}" if values else NONE)
        return name, entries

    columns = [
        names,
        means("tokens/\ns", "tokens_per_second", 1),
        means("latency\n(s)", "latency_seconds", 3),
        means("steps", "average_steps", 1),
        means("length", "average_length", 1),
        means("tokens/\nforward", "tokens_per_forward", 2),
        _accuracies(c, "accuracy\n(%)", [condition]),
    ]
    d = condition.decoding
    how = one_line(_labels(c, is_static=False)[d])
    title = f"{condition.task}, block size {d.block_size}, {how}, temperature {d.temperature:g}"
    note = (
        "Means over seeds. Tokens count up to and including the stop token; latency is measured "
        "at batch 1; steps are denoising passes and length is tokens, both a response."
    )
    return _method_sheet(c, title, columns, note)


def _difference_sheet(c: Comparison, conditions: list[Condition], base: str) -> Sheet:
    """Conditions of one task, temperature and block size."""
    names = labels((one.decoding for one in conditions), beside=IN_TITLES)
    columns = [_names(c), *(_differences(c, names[o.decoding], base, o) for o in conditions)]
    d = conditions[0].decoding
    title = f"{conditions[0].task}, block size {d.block_size}, temperature {d.temperature:g}"
    note = (
        f"Accuracy minus that of {base}, in points, paired by problem and by seed where both have "
        f"the same. ▲: above {base}, ▼: below it, where the interval excludes 0; intervals are "
        f"not corrected for their number. {_intervals(c)}"
    )
    return _method_sheet(c, title, columns, note, without=base)


def _budget_sheet(c: Comparison, names: Column) -> Sheet:
    rows = {method: c.rows(method) for method in c.methods}
    seeds = {m: sorted({row.seed for row in own}) for m, own in rows.items()}
    columns = [
        names,
        ("seeds", {m: Entry(", ".join(map(str, own))) for m, own in seeds.items()}),
        ("optimizer\nsteps", {m: _range(r.optimizer_steps for r in o) for m, o in rows.items()}),
        ("tokens\nseen", {m: _range(r.tokens_seen for r in o) for m, o in rows.items()}),
        ("tokens\ndecoded", {m: _range(r.tokens_decoded for r in o) for m, o in rows.items()}),
    ]
    note = "What each seed was trained with; a range where seeds differ."
    return replace(_method_sheet(c, "Training budget", columns, note), num_names=2)


def _range(values: Iterable[int | None]) -> Entry:
    known = list(values)
    if None in known:
        return Entry("unknown")
    ordered = sorted(value for value in known if value is not None)
    low, high = ordered[0], ordered[-1]
    return Entry(f"{low:,}" if low == high else f"{low:,}–{high:,}")


def _names(c: Comparison, recommended: str | None = None) -> Column:
    details = {method: "(recommended)" * (method == recommended) for method in c.methods}
    return "method", {method: Entry(method, detail) for method, detail in details.items()}


def comparison_sections(
    c: Comparison, recommended: str | None, self_distilled: Collection[str] | None = None
) -> list[Section]:
    """The tables of a comparison; differences are those to `recommended`, else to the original.

    Args:
        self_distilled: the methods that a column names so; None for no such column.
    """
    names = _names(c, recommended)
    kinds: list[Column] = []
    if self_distilled is not None:
        said = {m: Entry("yes" if m in self_distilled else "no") for m in c.methods}
        kinds = [("self-\ndistilled", said | {ORIGINAL: Entry(NONE)})]
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
            accuracy.append(_few_step_sheet(c, temperature, [names, *kinds]))
        if full:
            accuracy.append(_full_step_sheet(c, full, names))
        gaps = [one for one in few if one.full in full]
        if gaps:
            accuracy.append(_gap_sheet(c, gaps, names))
        for task in sorted({one.task for one in same}):
            own = [one for one in same if one.task == task]
            dynamic = [one for one in own if one.decoding.remasking != STATIC]
            speed += [_dynamic_sheet(c, one, names) for one in dynamic]
            for size in sorted({one.decoding.block_size for one in own}):
                columns = [one for one in own if one.decoding.block_size == size]
                differences.append(_difference_sheet(c, columns, base))
                rows = [row for m in c.methods for one in columns for row in c.rows(m, one)]
                where = f"{task}, block size {size}, temperature {temperature:g}"
                grading += grading_sheet(rows, where)
    problems = ", ".join(f"{num} of {task}" for task, num in sorted(c.num_problems.items()))
    sections: list[Section] = [
        (f"Accuracy, n = {problems}", accuracy),
        ("Dynamic decoding", speed),
        (f"Differences to {base}", differences),
        ("Grading", grading),
        ("Budget", [_budget_sheet(c, names)]),
    ]
    return [(heading, sheets) for heading, sheets in sections if sheets]
