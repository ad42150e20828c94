from __future__ import annotations

import dataclasses
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from t3d.decoding.config import DYNAMIC, STATIC, DecodingConfig, Remasking
from t3d.evaluation.comparison import Comparison, Estimate
from t3d.evaluation.results import Cell, Condition, ResultRow, load_results
from t3d.report.comparison import comparison_sections, write_comparison
from t3d.report.sheets import render_markdown, render_terminal
from t3d.report.tables import result_sections

Make = Callable[..., list[ResultRow]]
METHODS = ("alpha", "t3d", "original", "dparallel")


def make_cells(rows: list[ResultRow]) -> list[Cell]:
    """Gradings with as many right answers as the rows say; the original has one seed."""
    out = []
    for row in rows:
        rng = random.Random(
            f"{row.method} {row.seed} {row.decoding.block_size} {row.decoding.denoising_steps}"
        )
        right = [i < round(row.accuracy * row.n) for i in range(row.n)]
        if row.method != "original" or row.seed == 0:
            out.append(Cell(row, tuple(rng.sample(right, row.n))))
    return out


@pytest.fixture
def cells(make_rows: Make) -> list[Cell]:
    return make_cells(make_rows(METHODS, seeds=(0, 1, 2), block_sizes=(4, 8), n=60))


def comparison_markdown(cells: list[Cell], recommended: str | None) -> str:
    return render_markdown(comparison_sections(Comparison(cells), recommended))


def parse(markdown: str) -> dict[str, list[list[str]]]:
    """Title -> lines of entries, header first, without bold marks and rules."""
    tables: dict[str, list[list[str]]] = {}
    title = ""
    for line in markdown.splitlines():
        if line.startswith("### "):
            title = line.lstrip("# ")
        elif line.startswith("|"):
            entries = [c.strip().replace("**", "") for c in line[1:-1].split("|")]
            tables.setdefault(title, []).append(entries)
    for lines in tables.values():
        assert all(len(line) == len(lines[0]) for line in lines)
        assert all(re.fullmatch(r"-+:?", entry) for entry in lines.pop(1))
    return tables


def numbers(entry: str) -> list[float]:
    return [float(x) for x in re.findall(r"[-+]?[\d.]+", entry)]


def percents(estimate: Estimate | None) -> list[float]:
    assert estimate is not None
    return [100 * x for x in dataclasses.astuple(estimate)]


def line_of(lines: list[list[str]], *names: str) -> dict[str, str]:
    """The one line that begins with these names, by its header."""
    header, *rest = lines
    (line,) = [x for x in rest if [n.split(" ")[0] for n in x[: len(names)]] == list(names)]
    # Names of columns may repeat: the later one gets a number.
    keys = [f"{h}{header[:i].count(h) or ''}" for i, h in enumerate(header)]
    return dict(zip(keys, line, strict=True))


def test_static_tables_hold_every_cell(cells: list[Cell]) -> None:
    c = Comparison(cells)
    tables = parse(comparison_markdown(cells, "alpha"))
    few = tables["Static few-step decoding, temperature 0.1"]
    full = tables["Full-step decoding, temperature 0.1"]
    gaps = tables["Share of the few-step gap closed, temperature 0.1"]
    checked = 0
    for one in (x for x in c.conditions if x.decoding.remasking == STATIC):
        speed = f"{one.decoding.tokens_per_step:g}"
        for method in METHODS:
            block = f"block {one.decoding.block_size}"
            expected = percents(c.accuracy(method, one))
            names = (method,) if one == one.full else (speed, method)
            line = line_of(full if one == one.full else few, *names)
            assert numbers(line[block]) == pytest.approx(expected, abs=0.0501)
            checked += 1
            gap = c.gap_closed(method, one) if one != one.full else None
            if gap and method != "original":
                entry = line_of(gaps, method)[f"{block}<br>{speed} tokens/step"]
                assert numbers(entry) == pytest.approx(percents(gap), abs=0.0501)
    assert checked == len(METHODS) * 6
    for speed in (2, 4):
        settings = c.speeds[0.1, speed]
        line = line_of(few, str(speed), "t3d")
        expected = percents(c.accuracy("t3d", *settings))
        assert numbers(line["mean"]) == pytest.approx(expected, abs=0.0501)
        better = percents(c.improvement("t3d", *settings))
        assert numbers(line["improvement<br>(%)"]) == pytest.approx(better, abs=0.501)
        assert line_of(few, str(speed), "original")["improvement<br>(%)"] == "–"
    for i, size in enumerate((4, 8)):
        one = next(x for x in c.conditions if x == x.full and x.decoding.block_size == size)
        entry = line_of(full, "dparallel")[f"minus<br>original{i or ''}"]
        expected = percents(c.difference("dparallel", "original", one))
        assert numbers(entry) == pytest.approx(expected, abs=0.0501)


def test_differences_are_marked_where_sure(cells: list[Cell]) -> None:
    c = Comparison(cells)
    markdown = comparison_markdown(cells, "alpha")
    assert "## Differences to alpha\n" in markdown
    marks = set()
    for size in (4, 8):
        header, *lines = parse(markdown)[f"mini_gsm, block size {size}, temperature 0.1"]
        here = [one for one in c.conditions if one.decoding.block_size == size]
        assert len(header) == 1 + len(here)
        assert [line[0] for line in lines] == ["original", "dparallel", "t3d"]
        for method, *entries in lines:
            for one, entry in zip(here, entries, strict=True):
                difference = c.difference(method, "alpha", one)
                assert difference is not None
                assert numbers(entry) == pytest.approx(percents(difference), abs=0.0501)
                mark = re.sub(r"[^▲▼]", "", entry)
                assert mark == {1: "▲", 0: "", -1: "▼"}[difference.sign]
                marks.add(mark)
    assert marks >= {"▲", "▼"}


def test_intervals_of_one_seed_say_what_is_not_in_them(cells: list[Cell]) -> None:
    one = [cell for cell in cells if cell.row.seed == 0]
    for some, said, unsaid in (
        (one, "bootstrap over problems. How much seeds differ is not", "over seeds and problems"),
        (cells, "bootstrap over seeds and problems", "How much seeds differ"),
    ):
        text = comparison_markdown(some, recommended="t3d")
        assert said in text
        assert unsaid not in text


def test_dynamic_table_is_the_means_over_seeds(cells: list[Cell]) -> None:
    cells = [
        dataclasses.replace(x, row=dataclasses.replace(x.row, latency_seconds=0.25 + x.row.seed))
        if x.row.method == "t3d"
        else x
        for x in cells
    ]
    c = Comparison(cells)
    one = next(
        x for x in c.conditions if x.decoding.remasking == DYNAMIC and x.decoding.block_size == 8
    )
    title = "mini_gsm, block size 8, dynamic > 0.9, ≤ 8 steps, temperature 0.1"
    lines = parse(comparison_markdown(cells, "alpha"))[title]
    assert len(lines) == 1 + len(METHODS)
    rows = c.rows("t3d", one)
    line = line_of(lines, "t3d")
    for name, field, digits in (
        ("tokens/s", "tokens_per_second", 1),
        ("latency<br>(s)", "latency_seconds", 3),
        ("steps", "average_steps", 1),
        ("length", "average_length", 1),
        ("tokens/forward", "tokens_per_forward", 2),
    ):
        expected = np.mean([getattr(row, field) for row in rows])
        assert float(line[name]) == pytest.approx(expected, abs=0.501 * 10**-digits)
    accuracy = percents(c.accuracy("t3d", one))
    assert numbers(line["accuracy<br>(%)"]) == pytest.approx(accuracy, abs=0.0501)
    assert line_of(lines, "alpha")["latency<br>(s)"] == "–"


def test_the_budget_of_each_method(cells: list[Cell]) -> None:
    tables = parse(comparison_markdown(cells, "alpha"))
    line = line_of(tables["Training budget"], "t3d")
    rows = Comparison(cells).rows("t3d")
    assert line["seeds"] == "0, 1, 2"
    low, high = (f([row.tokens_seen for row in rows]) for f in (min, max))
    assert line["tokens<br>seen"] == f"{low:,}–{high:,}"
    even = [
        dataclasses.replace(x, row=dataclasses.replace(x.row, optimizer_steps=1200)) for x in cells
    ]
    budget = parse(comparison_markdown(even, None))["Training budget"]
    assert {line[2] for line in budget[1:]} == {"1,200"}


def test_partial_runs_leave_dashes(cells: list[Cell], tmp_path: Path) -> None:
    """Any part of the cells gives tables; what is missing is a dash."""
    rng = random.Random(0)
    for size in (1, 2, 5, 20):
        some = rng.sample(cells, size)
        directory = tmp_path / str(size)
        write_comparison(directory, some, recommended="alpha", provenance={})
        assert (directory / "accuracy.png").exists() == any(
            x.row.decoding.remasking == STATIC for x in some
        )
        report = (directory / "report.md").read_text(encoding="utf-8")
        assert ("accuracy.png" in report) == (directory / "accuracy.png").exists()
        assert parse(report)["Training budget"]
    missing = [x for x in cells if x.row.method != "t3d" or x.row.decoding.block_size == 8]
    few = parse(comparison_markdown(missing, None))["Static few-step decoding, temperature 0.1"]
    line = line_of(few, "2", "t3d")
    assert [line["block 4"], line["mean"], line["improvement<br>(%)"]] == ["–"] * 3
    assert line["block 8"] != "–"


def test_several_tasks_are_columns(cells: list[Cell]) -> None:
    other = [
        Cell(dataclasses.replace(x.row, task="other", n=30), x.correct[:30])
        for x in cells
        if x.row.decoding.block_size == 4
    ]
    markdown = comparison_markdown(cells + other, None)
    few = parse(markdown)["Static few-step decoding, temperature 0.1"]
    assert few[0][2:-1] == [
        "mini_gsm<br>block 4",
        "mini_gsm<br>block 8",
        "other<br>block 4",
        "mean",
    ]
    assert "n = 60 of mini_gsm, 30 of other" in markdown
    assert "## Differences to original\n" in markdown


@pytest.mark.parametrize("remasking", [STATIC, DYNAMIC])
def test_settings_that_differ_in_one_field_are_told_apart(
    make_rows: Make, remasking: Remasking
) -> None:
    """Every column of a table has a name of its own, and every table a title."""
    settings = [
        DecodingConfig(denoising_steps=steps, top_k=top_k, remasking=remasking)
        for steps in (4, 2)
        for top_k in (0, 5)
    ]
    cells = make_cells(
        [
            dataclasses.replace(row, decoding=setting)
            for row in make_rows(("t3d", "original"), n=60)
            if row.decoding == DecodingConfig()
            for setting in settings
        ]
    )
    assert len(cells) == 2 * len(settings)
    markdown = comparison_markdown(cells, None)
    titles = re.findall("^### (.*)$", markdown, re.MULTILINE)
    assert len(set(titles)) == len(titles) == (5 if remasking == STATIC else 6)
    for header, *_ in parse(markdown).values():
        names = [name for name in header if name != "minus<br>original"]
        assert len(set(names)) == len(names)


def test_files_are_whole(cells: list[Cell], tmp_path: Path) -> None:
    directory = tmp_path / "new" / "comparison"
    write_comparison(
        directory, cells, recommended="alpha", provenance={"seed": 7}, self_distilled=["t3d"]
    )
    names = {"results.json", "comparison.json", "report.md", "report.tex", "accuracy.png"}
    assert {path.name for path in directory.iterdir()} == names
    rows = load_results(directory / "results.json")
    assert {row.method for row in rows if row.recommended} == {"alpha"}
    assert {dataclasses.replace(row, recommended=None) for row in rows} == {x.row for x in cells}
    # The tables of single runs read them, too.
    assert result_sections(rows) == result_sections([x.row for x in cells])
    Console(file=io.StringIO()).print(render_terminal(result_sections(rows)))
    document = json.loads((directory / "comparison.json").read_text())
    assert document["provenance"] == {"seed": 7}
    assert document["recommended"] == "alpha"
    assert len(document["accuracy"]) == len(METHODS) * 8
    assert len(document["differences"]) == 6 * 8
    report = (directory / "report.md").read_text(encoding="utf-8")
    own = comparison_sections(Comparison(cells), "alpha", ["t3d"])
    assert render_markdown(own) in report
    few = parse(report)["Static few-step decoding, temperature 0.1"]
    assert few[0][1:3] == ["method", "self-<br>distilled"]
    kinds = {line[1]: line[2] for line in few[1:]}
    assert kinds == {"original": "–", "t3d": "yes", "dparallel": "no", "alpha (recommended)": "no"}
    assert document["self_distilled"] == ["t3d"]
    # LaTeX has the same tables with the same numbers.
    latex = (directory / "report.tex").read_text(encoding="utf-8")
    found = re.findall(r"\\midrule\n(.*?)\\bottomrule", latex, re.DOTALL)
    for body, (header, *lines) in zip(found, parse(report).values(), strict=True):
        rows = [row.removesuffix(r" \\") for row in body.splitlines() if row != r"\midrule"]
        assert {row.count(" & ") for row in rows} == {len(header) - 1}
        plain = [re.sub(r"\\\w+|[{}$]", "", row.replace("--", "–")) for row in rows]
        assert [numbers(row) for row in plain] == [numbers(" ".join(line)) for line in lines]
    with Image.open(directory / "accuracy.png") as image:
        image.load()
        assert image.format == "PNG"


def test_the_order_of_cells_changes_no_file(cells: list[Cell], tmp_path: Path) -> None:
    some = [
        x for x in cells if x.row.method in ("t3d", "original") and x.row.decoding.block_size == 4
    ]
    for name, order in (("a", some), ("b", some[::-1])):
        write_comparison(tmp_path / name, order, recommended="t3d", provenance={})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_nothing_is_written_without_cells(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no cells"):
        write_comparison(tmp_path / "x", [], recommended=None, provenance={})
    assert not (tmp_path / "x").exists()


def test_terminal_of_80_columns_shows_every_number(cells: list[Cell]) -> None:
    out = io.StringIO()
    sections = comparison_sections(Comparison(cells), "alpha")
    Console(file=out, width=80).print(render_terminal(sections))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "(recommended)" in text
    c = Comparison(cells)
    for one in c.conditions:
        for method in METHODS:
            value, low, high = percents(c.accuracy(method, one))
            assert f"{value:.1f}" in text
            assert f"[{low:.1f}, {high:.1f}]" in text


def test_conditions_know_their_full_setting(cells: list[Cell]) -> None:
    conditions = {Condition.of(x.row) for x in cells}
    assert {one.full for one in conditions} == {
        one
        for one in conditions
        if one.decoding.remasking == STATIC and one.decoding.tokens_per_step == 1
    }
