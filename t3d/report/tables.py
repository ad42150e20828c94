"""Result rows as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from t3d.evaluation.results import ResultRow

METHOD_ORDER = ("original", "sft", "redi", "dparallel", "naive_td", "t3d")
STATIC = "low_confidence_static"
DYNAMIC = "low_confidence_dynamic"
_NONE = "–"
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


def method_order(rows: Iterable[ResultRow]) -> list[str]:
    """The methods in the order of every table and legend; unknown ones follow by name."""
    found = {row.method for row in rows}
    return [m for m in METHOD_ORDER if m in found] + sorted(found - set(METHOD_ORDER))


@dataclass(frozen=True)
class Setting:
    """What the columns of a table differ in."""

    remasking: str
    denoising_steps: int
    confidence_threshold: float | None
    tokens_per_step: float

    @classmethod
    def of(cls, row: ResultRow) -> Setting:
        steps, threshold = row.denoising_steps, row.confidence_threshold
        return cls(row.remasking, steps, threshold, row.tokens_per_step)

    @property
    def rank(self) -> tuple[bool, str, float, float]:
        """Static settings first, slow ones before fast ones."""
        # A lower threshold is faster.
        threshold = -(self.confidence_threshold or 0)
        return self.remasking != STATIC, self.remasking, self.tokens_per_step, threshold

    @property
    def short(self) -> str:
        """Tokens a step, or the threshold."""
        if self.remasking == DYNAMIC:
            return f"> {self.confidence_threshold:g}"
        name = "" if self.remasking == STATIC else f" {self.remasking}"
        return f"{self.tokens_per_step:.3g}{name}"

    @property
    def label(self) -> str:
        """Two lines: the speed, and what gives it."""
        steps = f"{self.denoising_steps} step{'s' if self.denoising_steps > 1 else ''}"
        tokens = "token" if self.tokens_per_step == 1 else "tokens"
        if self.remasking == DYNAMIC:
            return f"dynamic {self.short}\n≤ {steps}"
        name = "" if self.remasking == STATIC else f", {self.remasking}"
        full = ", full" if self.tokens_per_step == 1 else ""
        return f"{self.tokens_per_step:.3g} {tokens}/step\n{steps}{name}{full}"


@dataclass(frozen=True)
class _Cell:
    text: str
    detail: str = ""
    bold: bool = False

    @property
    def markdown(self) -> str:
        text = self.text.replace("|", "\\|")
        return f"**{text}** {self.detail}".strip() if self.bold else f"{text} {self.detail}".strip()

    @property
    def rich(self) -> Text:
        text = Text(self.text, style="bold" if self.bold else "")
        return text.append(f"\n{self.detail}", style="not bold dim") if self.detail else text


@dataclass(frozen=True)
class _Sheet:
    title: str
    header: list[str]
    groups: list[list[list[_Cell]]]
    """Groups of rows of cells."""
    note: str
    num_names: int = 2
    """Leading columns of text; the others are numbers."""

    def markdown(self) -> str:
        header = [name.replace("/\n", "/").replace("\n", "<br>") for name in self.header]
        lines = [header] + [[c.markdown for c in row] for group in self.groups for row in group]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        aligned = [
            " | ".join(
                cell.ljust(width) if i < self.num_names else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        rule = " | ".join(
            "-" * width if i < self.num_names else "-" * (width - 1) + ":"
            for i, width in enumerate(widths)
        )
        table = "\n".join(f"| {line} |" for line in [aligned[0], rule, *aligned[1:]])
        return f"### {self.title}\n\n{table}\n\n{self.note}\n"

    def rich(self) -> RenderableType:
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            caption=self.note,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, int(len(self.header) < 10), 0, 0),
            header_style="dim",
        )
        for i, name in enumerate(self.header):
            justify = "left" if i < self.num_names else "right"
            table.add_column(name, justify=justify, no_wrap=i < 2, overflow="fold")
        for group in self.groups:
            for row in group:
                table.add_row(*(cell.rich for cell in row))
            if max(map(len, self.groups)) > 1:
                table.add_section()
        return table


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.1f}"


def _accuracy_sheet(rows: Sequence[ResultRow], where: str) -> _Sheet:
    settings = sorted({Setting.of(row) for row in rows}, key=lambda s: s.rank)
    methods = method_order(rows)

    def found(method: str, setting: Setting) -> list[ResultRow]:
        """One row a seed."""
        return [row for row in rows if row.method == method and Setting.of(row) == setting]

    means = {
        (method, setting): mean(row.accuracy for row in found(method, setting))
        for method in methods
        for setting in settings
        if found(method, setting)
    }
    best = {s: max(value for (_, t), value in means.items() if t == s) for s in settings}

    def is_best(method: str, setting: Setting) -> bool:
        return len(methods) > 1 and means[method, setting] == best[setting]

    counts = {row.n for row in rows}
    groups = []
    for method in methods:
        seeds = sorted({row.seed for row in rows if row.method == method})
        group = []
        for seed in seeds:
            line = [_Cell(method), _Cell(str(seed))]
            for setting in settings:
                row = next((r for r in found(method, setting) if r.seed == seed), None)
                if row is None:
                    line.append(_Cell(_NONE))
                    continue
                interval = f"[{_percent(row.ci95[0])}, {_percent(row.ci95[1])}]"
                interval += f" n={row.n}" if len(counts) > 1 else ""
                bold = len(seeds) == 1 and is_best(method, setting)
                line.append(_Cell(_percent(row.accuracy), interval, bold))
            group.append(line)
        if len(seeds) > 1:
            line = [_Cell(method), _Cell("mean")]
            for setting in settings:
                values = [row.accuracy for row in found(method, setting)]
                if not values:
                    line.append(_Cell(_NONE))
                    continue
                spread = f"± {_percent(stdev(values))}" if len(values) > 1 else ""
                line.append(_Cell(_percent(mean(values)), spread, is_best(method, setting)))
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
    header = ["method", "seed", *(setting.label for setting in settings)]
    return _Sheet(f"Accuracy, {where}", header, groups, note)


def _speed_sheet(rows: Sequence[ResultRow], where: str) -> _Sheet:
    rank = {method: i for i, method in enumerate(method_order(rows))}
    groups = []
    for setting in sorted({Setting.of(row) for row in rows}, key=lambda s: s.rank):
        group = []
        same = [row for row in rows if Setting.of(row) == setting]
        for row in sorted(same, key=lambda row: (rank[row.method], row.seed)):
            latency = row.latency_seconds
            numbers = (
                f"{row.tokens_per_forward:.2f}",
                f"{row.tokens_per_pass:.2f}",
                f"{row.tokens_per_second:.1f}",
                _NONE if latency is None else f"{1000 * latency:.1f}",
                f"{row.average_steps:.1f}",
                f"{row.average_length:.1f}",
                _percent(row.truncated),
                _percent(row.agreement),
            )
            names = (row.method, str(row.seed), setting.short)
            group.append([_Cell(text) for text in (*names, *numbers)])
        groups.append(group)
    note = (
        "Tokens count up to and including the stop token. Forward: denoising passes; pass: all "
        "passes, prefill and commits included. Latency is measured at batch 1. Steps are "
        "denoising passes and length is tokens, both a response. Cut: responses that hit the "
        "token limit. Agree: final answers equal to the full-step teacher's."
    )
    header = ["method", "seed", "tokens/\nstep", *_SPEED_HEADER]
    return _Sheet(f"Speed, {where}", header, groups, note)


def _checkpoint_sheet(rows: Sequence[ResultRow]) -> _Sheet:
    rank = {method: i for i, method in enumerate(method_order(rows))}
    found = {(r.method, r.seed, r.model, r.optimizer_steps, r.tokens_seen) for r in rows}
    lines = [
        [_Cell(text) for text in (m, str(seed), model, f"{steps:,}", f"{tokens:,}")]
        for m, seed, model, steps, tokens in sorted(found, key=lambda row: (rank[row[0]], row[1:]))
    ]
    header = ["method", "seed", "model", "optimizer\nsteps", "tokens\nseen"]
    note = "Training that lies behind each checkpoint; tokens seen are those of all its steps."
    return _Sheet("What was evaluated", header, [lines], note, num_names=3)


def _sheets(rows: Sequence[ResultRow]) -> list[tuple[str, list[_Sheet]]]:
    """(heading, sheets) for each task, then the checkpoints."""
    if not rows:
        raise ValueError("there are no result rows to report; make some with `t3d eval`")
    keys = set()
    for row in rows:
        where = f"block size {row.block_size}, temperature {row.temperature:g}"
        key = (row.task, row.method, row.seed, where, Setting.of(row))
        if key in keys:
            setting = Setting.of(row).label.replace("\n", ", ")
            raise ValueError(
                f"two result rows for task {row.task}, method {row.method}, seed {row.seed}, "
                f"{where}, {setting}; keep one, or give one of them a method name of its own"
            )
        keys.add(key)
    out = []
    for task in sorted({row.task for row in rows}):
        sheets = []
        for size, temperature in sorted({(row.block_size, row.temperature) for row in rows}):
            same = [
                row
                for row in rows
                if (row.task, row.block_size, row.temperature) == (task, size, temperature)
            ]
            if same:
                where = f"block size {size}, temperature {temperature:g}"
                sheets += [_accuracy_sheet(same, where), _speed_sheet(same, where)]
        out.append((task, sheets))
    return [*out, ("Checkpoints", [_checkpoint_sheet(rows)])]


def markdown_tables(rows: Sequence[ResultRow]) -> str:
    """Tables in GitHub's Markdown, a section a task.

    Raises:
        ValueError: if there are no rows, or two for one checkpoint, task and setting.
    """
    parts = []
    for heading, sheets in _sheets(rows):
        parts += [f"## {heading}\n", *(sheet.markdown() for sheet in sheets)]
    return "\n".join(parts)


def terminal_tables(rows: Sequence[ResultRow]) -> RenderableType:
    """The same tables for a terminal of 80 columns or more."""
    parts: list[RenderableType] = []
    for heading, sheets in _sheets(rows):
        parts.append(Text(heading, style="bold reverse"))
        for sheet in sheets:
            parts += ["", sheet.rich()]
        parts.append("")
    return Group(*parts)
