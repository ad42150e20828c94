"""Result rows as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from rich.console import RenderableType

from t3d.decoding.config import DYNAMIC, DecodingConfig, labels, one_line
from t3d.evaluation.results import Condition, ResultRow
from t3d.report.sheets import (
    NONE,
    Entry,
    Section,
    Sheet,
    order_methods,
    percent,
)

if TYPE_CHECKING:
    # It imports torch, which reports do without.
    from t3d.evaluation.calibrate import Candidate, Choice

_SPEED_HEADER = (
    "tokens/\nforward",
    "tokens/\npass",
    "tokens/\ns",
    "latency\n(ms)",
    "steps",
    "length",
    "cut\n(%)",
    "agree\n(%)",
)


IN_TITLES = ("block_size", "temperature")
"""Fields of the decoding setting that a table's title already states."""


def _settings(rows: Iterable[ResultRow]) -> dict[DecodingConfig, str]:
    """The settings in their order, with a column's name for each."""
    found = {row.decoding.effective for row in rows}
    return labels(sorted(found, key=lambda setting: setting.rank), beside=IN_TITLES)


def _paces(settings: Mapping[DecodingConfig, str]) -> dict[DecodingConfig, str]:
    """A short name of each setting, or its whole label where another has the same short one."""
    counts = Counter(setting.pace for setting in settings)
    return {s: s.pace if counts[s.pace] == 1 else one_line(name) for s, name in settings.items()}


def _accuracy_sheet(rows: Sequence[ResultRow], where: str) -> Sheet:
    settings = _settings(rows)
    methods = order_methods(row.method for row in rows)

    def found(method: str, setting: DecodingConfig) -> list[ResultRow]:
        """One row a seed."""
        return [row for row in rows if row.method == method and row.decoding.effective == setting]

    means = {
        (method, setting): mean(row.accuracy for row in found(method, setting))
        for method in methods
        for setting in settings
        if found(method, setting)
    }
    best = {s: max(value for (_, t), value in means.items() if t == s) for s in settings}

    def is_best(method: str, setting: DecodingConfig) -> bool:
        return len(methods) > 1 and means[method, setting] == best[setting]

    counts = {row.n for row in rows}
    groups = []
    for method in methods:
        seeds = sorted({row.seed for row in rows if row.method == method})
        group = []
        for seed in seeds:
            line = [Entry(method), Entry(str(seed))]
            for setting in settings:
                row = next((r for r in found(method, setting) if r.seed == seed), None)
                if row is None:
                    line.append(Entry(NONE))
                    continue
                interval = f"[{percent(row.ci95[0])}, {percent(row.ci95[1])}]"
                interval += f" n={row.n}" if len(counts) > 1 else ""
                bold = len(seeds) == 1 and is_best(method, setting)
                line.append(Entry(percent(row.accuracy), interval, bold))
            group.append(line)
        if len(seeds) > 1:
            line = [Entry(method), Entry("mean")]
            for setting in settings:
                values = [row.accuracy for row in found(method, setting)]
                if not values:
                    line.append(Entry(NONE))
                    continue
                spread = f"± {percent(stdev(values))}" if len(values) > 1 else ""
                line.append(Entry(percent(mean(values)), spread, is_best(method, setting)))
            group.append(line)
        groups.append(group)
    note = (
        "Accuracy in % with its Wilson 95 % interval on n "
        + (f"= {counts.pop()} problems. " if len(counts) == 1 else "problems. ")
        + "A column is a decoding setting: the tokens that a denoising step commits"
        + (
            ", or dynamic: every token whose confidence is above the threshold."
            if any(setting.remasking == DYNAMIC for setting in settings)
            else "."
        )
        + (" Bold: the highest of a column." if len(methods) > 1 else "")
        + (
            " Means are over seeds, ± their standard deviation."
            if any(len(group) > 1 for group in groups)
            else ""
        )
    )
    header = ["method", "seed", *settings.values()]
    return Sheet(f"Accuracy, {where}", header, groups, note)


def _speed_sheet(rows: Sequence[ResultRow], where: str) -> Sheet:
    order = order_methods(row.method for row in rows)
    groups = []
    for setting, pace in _paces(_settings(rows)).items():
        group = []
        same = [row for row in rows if row.decoding.effective == setting]
        for row in sorted(same, key=lambda row: (order.index(row.method), row.seed)):
            latency = row.latency_seconds
            numbers = (
                f"{row.tokens_per_forward:.2f}",
                f"{row.tokens_per_pass:.2f}",
                f"{row.tokens_per_second:.1f}",
                NONE if latency is None else f"{1000 * latency:.1f}",
                f"{row.average_steps:.1f}",
                f"{row.average_length:.1f}",
                percent(row.truncated),
                percent(row.agreement),
            )
            names = (row.method, str(row.seed), pace)
            group.append([Entry(text) for text in (*names, *numbers)])
        groups.append(group)
    note = (
        "Tokens count up to and including the stop token. Forward: denoising passes; pass: all "
        "passes, prefill and commits included. Latency is measured at batch 1. Steps are "
        "denoising passes and length is tokens, both a response. Cut: responses that hit the "
        "token limit. Agree: final answers equal to the full-step teacher's."
    )
    header = ["method", "seed", "tokens/\nstep", *_SPEED_HEADER]
    return Sheet(f"Speed, {where}", header, groups, note)


def grading_sheet(rows: Sequence[ResultRow], where: str) -> list[Sheet]:
    """A sheet of why answers are wrong; none unless rows are graded by more than one exact rule."""
    if not any(row.string_accuracy is not None or row.timed_out for row in rows):
        return []
    strict = any(row.faithful is not None for row in rows)
    names = ["accuracy", "string_accuracy", *["faithful"] * strict, "no_answer", "timed_out"]
    lines = []
    for setting, pace in _paces(_settings(rows)).items():
        for method in order_methods(row.method for row in rows):
            same = [r for r in rows if (r.method, r.decoding.effective) == (method, setting)]
            if same:
                shares = ([getattr(row, name) for row in same] for name in names)
                means = [None if None in found else mean(found) for found in shares]
                numbers = [Entry(percent(share)) for share in means]
                lines.append([Entry(method), Entry(pace), *numbers])
    header = ["method", "tokens/\nstep", "correct\n(%)", "as strings\n(%)"]
    header += ["faithful\n(%)"] if strict else []
    header += ["no answer\n(%)", "timed out\n(%)"]
    note = (
        "Means over seeds. Correct is what accuracy is elsewhere. As strings: equal to the gold "
        "answer by a plain comparison of strings. Timed out: grading ran out of time, which "
        "counts as wrong."
    )
    if strict:
        note += (
            " Faithful: the response names no other person, thing or day than its question, and "
            "every equation in it is true; correct is right and faithful."
        )
    return [Sheet(f"Grading, {where}", header, [lines], note)]


def _checkpoint_sheet(rows: Sequence[ResultRow]) -> Sheet:
    found = {(r.method, r.seed, r.model, r.optimizer_steps, r.tokens_seen) for r in rows}
    lines = [
        [Entry(text) for text in (m, str(seed), model, f"{steps:,}", f"{tokens:,}")]
        for method in order_methods(row.method for row in rows)
        for m, seed, model, steps, tokens in sorted(line for line in found if line[0] == method)
    ]
    header = ["method", "seed", "model", "optimizer\nsteps", "tokens\nseen"]
    note = "Training that lies behind each checkpoint; tokens seen are those of all its steps."
    return Sheet("What was evaluated", header, [lines], note, num_names=3)


def result_sections(rows: Sequence[ResultRow]) -> list[Section]:
    """One for each task, then the checkpoints.

    Raises:
        ValueError: if there are no rows, or two for one checkpoint, task and setting.
    """
    if not rows:
        raise ValueError("there are no result rows to report; make some with `t3d eval`")
    keys = set()
    for row in rows:
        key = (Condition.of(row), row.method, row.seed)
        if key in keys:
            raise ValueError(
                f"two result rows for task {row.task}, method {row.method}, seed {row.seed}, "
                f"{row.decoding.name}; keep one, or give one of them a method name of its own"
            )
        keys.add(key)
    out: list[Section] = []
    for task in sorted({row.task for row in rows}):
        sheets = []
        groups: dict[tuple[int, float], list[ResultRow]] = {}
        for row in sorted(rows, key=lambda row: row.decoding.rank):
            if row.task == task:
                where = row.decoding.block_size, row.decoding.temperature
                groups.setdefault(where, []).append(row)
        for (size, temperature), same in sorted(groups.items()):
            where = f"block size {size}, temperature {temperature:g}"
            sheets += [_accuracy_sheet(same, where), _speed_sheet(same, where)]
            sheets += grading_sheet(same, where)
        out.append((task, sheets))
    return [*out, ("Checkpoints", [_checkpoint_sheet(rows)])]


def calibration_terminal(choice: Choice) -> RenderableType:
    """Every setting with its verdict, its loss and the bound of that loss."""
    full = choice.baseline
    names = labels([full.decoding, *(c.row.decoding for c in choice.candidates)])
    tried = [(full, "baseline", 0.0, 0.0)]
    tried += [(c.row, _verdict(c), c.loss, c.bound) for c in choice.candidates]
    lines = [
        [
            Entry(one_line(names[row.decoding]), bold=row == choice.row),
            Entry(verdict),
            Entry(str(row.decoding.block_size)),
            Entry(f"{row.tokens_per_forward:.2f}"),
            Entry(percent(row.accuracy)),
            Entry(percent(loss)),
            Entry(percent(bound)),
        ]
        for row, verdict, loss, bound in tried
    ]
    note = (
        f"Accepted: loses at most {choice.max_loss:g} points on {full.n} development problems, "
        f"with {100 * choice.confidence:g} % confidence for all of them together; bounds are "
        f"one-sided at {100 * choice.sweep_confidence:.4g} %. Not tried: a slower setting was "
        "refused. Bold: the fastest accepted one, chosen."
    )
    header = ["setting", "verdict", "block", "tokens/\nforward", "accuracy\n(%)"]
    return Sheet("Calibration", [*header, "loss\n(points)", "at\nmost"], [lines], note)


def _verdict(candidate: Candidate) -> str:
    if candidate.accepted:
        return "accepted"
    return "not tried" if candidate.reason.startswith("not tried") else "refused"
