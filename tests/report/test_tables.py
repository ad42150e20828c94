from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from statistics import mean, stdev

import pytest
from rich.console import Console

from t3d.decoding.config import DYNAMIC, DecodingConfig
from t3d.evaluation.results import ResultRow
from t3d.report.sheets import Entry, order_methods, render_markdown, render_terminal
from t3d.report.tables import result_sections

Make = Callable[..., list[ResultRow]]
ORDER = ["original", "sft", "redi", "dparallel", "naive_td", "t3d", "alpha", "zebra"]


def markdown_tables(rows: list[ResultRow]) -> str:
    return render_markdown(result_sections(rows))


def parse(markdown: str) -> dict[str, list[list[str]]]:
    """Section title -> lines of cells, header first, without bold marks and rules."""
    tables: dict[str, list[list[str]]] = {}
    title = ""
    for line in markdown.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("|"):
            cells = [c.strip().replace("**", "") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            tables.setdefault(title, []).append(cells)
    for lines in tables.values():
        assert all(len(line) == len(lines[0]) for line in lines)
        assert all(re.fullmatch(r"-+:?", cell) for cell in lines.pop(1))
    return tables


def column(row: ResultRow) -> str:
    """The header of the accuracy column of a row."""
    d = row.decoding
    steps = f"{d.denoising_steps} step{'s' if d.denoising_steps > 1 else ''}"
    if d.remasking == DYNAMIC:
        return f"dynamic > {d.confidence_threshold}<br>≤ {steps}"
    if d.denoising_steps == d.block_size:
        return f"1 token/step<br>{steps}, full"
    return f"{d.block_size // d.denoising_steps} tokens/step<br>{steps}"


def terminal(rows: list[ResultRow], width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render_terminal(result_sections(rows)))
    return out.getvalue()


def test_every_accuracy_parses_back(make_rows: Make) -> None:
    rows = make_rows(seeds=(0, 1), block_sizes=(4, 8))
    tables = parse(markdown_tables(rows))
    found = 0
    for row in rows:
        header, *lines = tables[f"Accuracy, block size {row.decoding.block_size}, temperature 0.1"]
        (line,) = [line for line in lines if line[:2] == [row.method, str(row.seed)]]
        numbers = [float(x) for x in re.findall(r"[\d.]+", line[header.index(column(row))])]
        expected = [100 * row.accuracy, 100 * row.ci95[0], 100 * row.ci95[1]]
        assert numbers == pytest.approx(expected, abs=0.0501)
        found += 1
    cells = sum(
        len(line) - 2
        for title, lines in tables.items()
        if title.startswith("Accuracy")
        for line in lines[1:]
        if line[1] != "mean"
    )
    assert found == len(rows) == cells


def test_every_speed_parses_back(make_rows: Make) -> None:
    rows = make_rows(seeds=(0, 3))
    header, *lines = parse(markdown_tables(rows))["Speed, block size 4, temperature 0.1"]
    assert len(lines) == len(rows)
    for row in rows:
        d = row.decoding
        name = "> 0.9" if d.remasking == DYNAMIC else str(4 // d.denoising_steps)
        (line,) = [line for line in lines if line[:3] == [row.method, str(row.seed), name]]
        latency, agreement = row.latency_seconds, row.agreement
        expected = {
            "tokens/forward": (row.tokens_per_forward, 0.00501),
            "tokens/pass": (row.tokens_per_pass, 0.00501),
            "tokens/s": (row.tokens_per_second, 0.0501),
            "latency<br>(ms)": (None if latency is None else 1000 * latency, 0.0501),
            "steps": (row.average_steps, 0.0501),
            "length": (row.average_length, 0.0501),
            "cut<br>(%)": (100 * row.truncated, 0.0501),
            "agree<br>(%)": (None if agreement is None else 100 * agreement, 0.0501),
        }
        assert header[3:] == list(expected)
        for cell, (value, tolerance) in zip(line[3:], expected.values(), strict=True):
            assert cell == "–" if value is None else abs(float(cell) - value) < tolerance


def test_checkpoints_parse_back(make_rows: Make) -> None:
    row = make_rows(methods=("t3d",))[0]
    (_, line) = parse(markdown_tables([row]))["What was evaluated"]
    assert line == ["t3d", "0", row.model, f"{row.optimizer_steps:,}", f"{row.tokens_seen:,}"]


def test_methods_and_settings_are_ordered(make_rows: Make) -> None:
    rows = make_rows()
    assert order_methods(row.method for row in rows) == ORDER
    header, *lines = parse(markdown_tables(rows))["Accuracy, block size 4, temperature 0.1"]
    assert [line[0] for line in lines] == ORDER
    assert [name.split("<br>")[0] for name in header[2:]] == [
        "1 token/step",
        "2 tokens/step",
        "4 tokens/step",
        "dynamic > 0.9",
    ]


def test_means_are_over_seeds(make_rows: Make) -> None:
    rows = make_rows(methods=("t3d", "sft"), seeds=(0, 1, 2))
    rows = [row for row in rows if (row.method, row.seed) not in {("sft", 1), ("sft", 2)}]
    header, *lines = parse(markdown_tables(rows))["Accuracy, block size 4, temperature 0.1"]
    # A single seed has no mean.
    (line,) = [line for line in lines if line[1] == "mean"]
    assert line[0] == "t3d"
    for row in rows:
        same = [r.accuracy for r in rows if r.method == "t3d" and column(r) == column(row)]
        numbers = [float(x) for x in line[header.index(column(row))].split(" ± ")]
        assert numbers == pytest.approx([100 * mean(same), 100 * stdev(same)], abs=0.0501)


def test_the_best_of_each_column_is_bold(make_rows: Make) -> None:
    rows = make_rows(seeds=(0, 1))
    lines = [line for line in markdown_tables(rows).splitlines() if "**" in line]
    assert all(line.split("|")[2].strip() == "mean" for line in lines)
    bold = [float(x) for line in lines for x in re.findall(r"\*\*([\d.]+)\*\*", line)]
    columns = {column(row) for row in rows}
    best = [
        max(
            mean(r.accuracy for r in rows if r.method == method and column(r) == name)
            for method in ORDER
        )
        for name in columns
    ]
    assert sorted(bold) == pytest.approx([100 * share for share in sorted(best)], abs=0.0501)
    assert "**" not in markdown_tables(make_rows(methods=("t3d",)))


def test_a_missing_cell_is_a_dash(make_rows: Make) -> None:
    rows = make_rows(methods=("t3d", "sft"))
    gone = next(row for row in rows if row.method == "sft")
    kept = [row for row in rows if row is not gone]
    header, *lines = parse(markdown_tables(kept))["Accuracy, block size 4, temperature 0.1"]
    cells = {
        (line[0], name): cell for line in lines for name, cell in zip(header, line, strict=True)
    }
    assert [key for key, cell in cells.items() if cell == "–"] == [("sft", column(gone))]


def test_n_is_in_the_note_or_in_the_cells(make_rows: Make) -> None:
    assert "on n = 500 problems" in markdown_tables(make_rows())
    mixed = markdown_tables(make_rows(methods=("t3d",)) + make_rows(methods=("sft",), n=64))
    assert mixed.count("n=500") == mixed.count("n=64") == 4


def test_tasks_and_temperatures_have_tables_of_their_own(make_rows: Make) -> None:
    rows = make_rows(methods=("t3d",))
    other = [
        dataclasses.replace(
            row, task="gsm8k", decoding=dataclasses.replace(row.decoding, temperature=1.0)
        )
        for row in rows
    ]
    markdown = markdown_tables(rows + other)
    assert re.findall(r"^## (.*)$", markdown, re.M) == ["gsm8k", "mini_gsm", "Checkpoints"]
    assert "### Accuracy, block size 4, temperature 1\n" in markdown


def test_names_cannot_break_the_markdown(make_rows: Make) -> None:
    rows = [dataclasses.replace(row, method="a|b") for row in make_rows(methods=("t3d",))]
    _, line = parse(markdown_tables(rows))["Accuracy, block size 4, temperature 0.1"]
    assert line[0] == "a\\|b"


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_every_number_uncut(make_rows: Make, width: int) -> None:
    rows = make_rows(seeds=(0, 1))
    text = terminal(rows, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for lines in parse(markdown_tables(rows)).values():
        for cell in (cell for line in lines[1:] for cell in line):
            assert all(word in words for word in cell.split()), cell


def test_numbers_stay_whole_beside_settings_of_long_names(make_rows: Make) -> None:
    rows = [
        dataclasses.replace(row, decoding=dataclasses.replace(row.decoding, max_new_tokens=length))
        for length in (48, 96)
        for row in make_rows(("original", "naive_td"))
    ]
    text = terminal(rows, 80)
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    for row in rows:
        for number in (
            f"{100 * row.accuracy:.1f}",
            f"{row.tokens_per_second:.1f}",
            f"{row.tokens_per_forward:.2f}",
        ):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", text), number
    assert not re.search(r"^\s*\d{1,2}\]", text, re.MULTILINE)


def test_a_name_without_end_leaves_the_table_in_the_terminal(make_rows: Make) -> None:
    rows = [dataclasses.replace(row, method="m" * 200) for row in make_rows(("t3d",))]
    assert all(len(line.rstrip()) <= 80 for line in terminal(rows, 80).splitlines())


def test_two_rows_for_one_cell_are_refused(make_rows: Make) -> None:
    rows = make_rows()
    with pytest.raises(ValueError, match=r"two result rows for task mini_gsm, method .* keep one"):
        markdown_tables([*rows, rows[0]])


def test_the_strict_rule_stands_beside_the_answers_alone(make_rows: Make) -> None:
    rows = make_rows(methods=("original",))
    assert "Grading" not in markdown_tables(rows)
    graded = [dataclasses.replace(row, string_accuracy=0.75) for row in rows]
    assert "75.0" in markdown_tables(graded)
    assert "faithful" not in markdown_tables(graded)
    strict = [dataclasses.replace(row, faithful=0.625) for row in graded]
    made = markdown_tables(strict)
    assert "correct is right and faithful" in made
    sheets = [lines for title, lines in parse(made).items() if title.startswith("Grading")]
    assert sheets
    for header, *lines in sheets:
        assert all(
            dict(zip(header, line, strict=True))["faithful<br>(%)"] == "62.5" for line in lines
        )


def test_grading_is_the_mean_over_seeds(make_rows: Make) -> None:
    rows = [
        dataclasses.replace(row, string_accuracy=0.25 + 0.5 * row.seed, no_answer=0.1, timed_out=0)
        for row in make_rows(methods=("t3d",), seeds=(0, 1))
    ]
    header, *lines = parse(markdown_tables(rows))["Grading, block size 4, temperature 0.1"]
    assert len(lines) == 4
    for line in lines:
        found = dict(zip(header, line, strict=True))
        assert found["as strings<br>(%)"] == "50.0"
        assert (found["no answer<br>(%)"], found["timed out<br>(%)"]) == ("10.0", "0.0")
    correct = {line[header.index("correct<br>(%)")] for line in lines}
    settings = {row.decoding for row in rows}
    assert correct == {
        f"{100 * mean(r.accuracy for r in rows if r.decoding == setting):.1f}"
        for setting in settings
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("entropy_bound", 0.5),
        ("top_p", 0.9),
        ("top_k", 5),
        ("window", 2),
        ("max_new_tokens", 64),
        ("random_share", 0.25),
        ("confidence", "tempered"),
    ],
)
def test_settings_that_differ_in_one_field_are_two_columns(
    make_rows: Make, field: str, value: float
) -> None:
    row = make_rows(methods=("t3d",))[0]
    bounded = "entropy_bounded" if field == "entropy_bound" else "low_confidence_static"
    one = DecodingConfig(denoising_steps=2, remasking=bounded)
    settings = (one, dataclasses.replace(one, **{field: value}))
    rows = [dataclasses.replace(row, decoding=setting) for setting in settings]
    tables = parse(markdown_tables(rows))
    header, _ = tables["Accuracy, block size 4, temperature 0.1"]
    assert len(set(header)) == 4
    lines = tables["Speed, block size 4, temperature 0.1"]
    assert len({line[2] for line in lines}) == len(lines) == 3


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="t3d eval"):
        markdown_tables([])


def test_latex_shows_every_character() -> None:
    entry = Entry("a_b & 50 % of $x^{2}$ ~ #1", "\\n", bold=True)
    assert entry.latex == (
        r"\textbf{a\_b \& 50 \% of \$x\textasciicircum{}\{2\}\$ \textasciitilde{} \#1} "
        r"{\scriptsize \textbackslash{}n}"
    )
