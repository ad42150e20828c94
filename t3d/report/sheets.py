"""Tables for the terminal, Markdown, LaTeX and HTML; order, colours and markers of methods."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

# Okabe and Ito's palette, safe for colour-blind readers; a marker each as a second channel.
_STYLES = {
    "original": ("#555555", "o"),
    "sft": ("#e69f00", "s"),
    "redi": ("#56b4e9", "^"),
    "redi_coupled": ("#1f78b4", "<"),
    "dparallel": ("#cc79a7", "v"),
    "naive_td": ("#0072b2", "D"),
    "t3d": ("#d55e00", "o"),
    "d3llm": ("#8c6d00", "X"),
    "cdlm": ("#7a3fb0", "p"),
    "rtd": ("#009e73", "P"),
    "tracerl": ("#a50026", "<"),
    "lightningrl": ("#f46d43", ">"),
    "rtd_rl": ("#00441b", "*"),
}
_COLOURS = ("#000000", "#a6761d", "#e7298a", "#1b7837", "#4d4dff", "#b2182b", "#40a4a4")
_MARKERS = ("h", "*", "<", ">", "8")
NONE = "–"


def style(method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every figure, whatever else is in it."""
    number = zlib.crc32(method.encode())
    other = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    return _STYLES.get(method, other)


def order_methods(names: Iterable[str]) -> list[str]:
    """Methods in the order of every table and legend; unknown ones follow by name."""
    found = set(names)
    return [m for m in _STYLES if m in found] + sorted(found - set(_STYLES))


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "–": "--", "≤": r"$\le$"}
    | {">": r"\textgreater{}", "<": r"\textless{}", "|": r"\textbar{}"}
)


def _escape(text: str) -> str:
    """Text as LaTeX that shows it."""
    return text.translate(_LATEX)


@dataclass(frozen=True)
class Entry:
    """One field of a table."""

    text: str
    detail: str = ""
    """Smaller text behind `text`, or below it in a terminal."""
    bold: bool = False

    @property
    def markdown(self) -> str:
        text = self.text.replace("|", "\\|")
        return f"**{text}** {self.detail}".strip() if self.bold else f"{text} {self.detail}".strip()

    @property
    def latex(self) -> str:
        text, detail = _escape(self.text), _escape(self.detail)
        text = f"\\textbf{{{text}}}" if self.bold else text
        return f"{text} {{\\scriptsize {detail}}}" if detail else text

    @property
    def html(self) -> str:
        text, detail = escape(self.text), escape(self.detail)
        text = f"<b>{text}</b>" if self.bold else text
        return f"{text} <small>{detail}</small>" if detail else text

    @property
    def rich(self) -> Text:
        text = Text(self.text, style="bold" if self.bold else "")
        return text.append(f"\n{self.detail}", style="not bold dim") if self.detail else text


@dataclass(frozen=True)
class Sheet:
    """One table with its title and a note below it."""

    title: str
    header: list[str]
    groups: list[list[list[Entry]]]
    """Rows of entries, in groups that a rule separates."""
    note: str
    num_names: int = 2
    """Number of leading columns that hold text; the others hold numbers."""

    def markdown(self) -> str:
        header = [name.replace("/\n", "/").replace("\n", "<br>") for name in self.header]
        header = [name.replace("|", "\\|") for name in header]
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

    def latex(self) -> str:
        names = (_escape(name).replace("/\n", "/").replace("\n", r" \\ ") for name in self.header)
        header = " & ".join(rf"\shortstack{{{name}}}" for name in names)
        groups = (
            "\n".join(" & ".join(entry.latex for entry in row) + r" \\" for row in group)
            for group in self.groups
        )
        columns = "l" * self.num_names + "r" * (len(self.header) - self.num_names)
        return "\n".join(
            (
                r"\begin{table}",
                rf"\caption{{{_escape(self.title)}. {_escape(self.note)}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                header + r" \\",
                r"\midrule",
                "\n\\midrule\n".join(groups),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            )
        )

    def html(self) -> str:
        """A table that scrolls sideways where it is wider than the page, by keyboard too."""

        def line(tag: str, cells: Iterable[str]) -> str:
            names = self.num_names
            kinds = [""] * names + [' class="number"'] * (len(self.header) - names)
            return "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True))

        header = line("th", (escape(name).replace("\n", "<br>") for name in self.header))
        bodies = (
            "".join(f"<tr>{line('td', (entry.html for entry in row))}</tr>" for row in group)
            for group in self.groups
        )
        title = escape(self.title)
        return (
            f'<h3>{title}</h3>\n<div class="scroll" tabindex="0" role="region" '
            f'aria-label="{title}"><table><thead><tr>{header}</tr></thead>'
            f"{''.join(f'<tbody>{body}</tbody>' for body in bodies)}</table></div>\n"
            f'<p class="soft">{escape(self.note)}</p>\n'
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        padding = int(len(self.header) < 10)
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            caption=self.note,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, padding, 0, 0),
            header_style="dim",
        )
        gaps = (len(self.header) - 1) * (1 + padding)
        widths = self._widths(options.max_width - gaps)
        for i, (name, width) in enumerate(zip(self.header, widths, strict=True)):
            justify = "left" if i < self.num_names else "right"
            table.add_column(name, justify=justify, overflow="fold", width=width)
        for group in self.groups:
            for row in group:
                table.add_row(*(cell.rich for cell in row))
            if max(map(len, self.groups)) > 1:
                table.add_section()
        yield table

    def _widths(self, room: int) -> list[int]:
        """Of the columns: the widest shrink first, and words of the header break before others."""
        names = [[name] for name in self.header]
        rows = [row for group in self.groups for row in group]
        cells = [[c.rich.plain for c in column] for column in zip(*rows, strict=True)] or names
        pairs = list(zip(names, cells, strict=True))
        widths = [_longest(name + own, "\n") for name, own in pairs]
        for least in (
            [_longest(name + own) for name, own in pairs],
            [_longest(own) for own in cells],
            [1] * len(widths),
        ):
            while sum(widths) > room and any(w > low for w, low in zip(widths, least, strict=True)):
                widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
                widths[widest] -= 1
        return widths


def _longest(texts: Iterable[str], at: str | None = None) -> int:
    """The cells of the longest part of texts that are split at a separator, or at blanks."""
    return max(cell_len(part) for text in texts for part in (text.split(at) or [""]))


def percent(share: float | None) -> str:
    """A share as a number of percent."""
    return NONE if share is None else f"{100 * share:.1f}"


Section = tuple[str, Sequence[Sheet]]
"""Heading of a section and the tables below it."""


def render_markdown(sections: Sequence[Section]) -> str:
    """The sections in GitHub's Markdown."""
    parts = []
    for heading, sheets in sections:
        parts += [f"## {heading}\n", *(sheet.markdown() for sheet in sheets)]
    return "\n".join(parts)


def render_html(sections: Sequence[Section]) -> str:
    """The sections as a part of a page."""
    return "\n".join(
        f"<h2>{escape(heading)}</h2>\n{''.join(sheet.html() for sheet in sheets)}"
        for heading, sheets in sections
    )


def render_latex(sections: Sequence[Section]) -> str:
    """The tables for a LaTeX document; their numbers are those of the Markdown."""
    packages = "% \\input this file; it needs \\usepackage{booktabs,amssymb}.\n"
    return "\n".join([packages, *(s.latex() for _, sheets in sections for s in sheets)])


def render_terminal(sections: Sequence[Section]) -> RenderableType:
    """The sections for a terminal of at least 80 columns."""
    parts: list[RenderableType] = []
    for heading, sheets in sections:
        parts.append(Text(heading, style="bold reverse"))
        for sheet in sheets:
            parts += ["", sheet]
        parts.append("")
    return Group(*parts)
