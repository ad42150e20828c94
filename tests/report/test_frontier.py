from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from t3d.evaluation.frontier import frontier
from t3d.evaluation.results import ResultRow
from t3d.report.frontier import frontier_sections, write_frontier
from t3d.report.sheets import render_terminal

Make = Callable[..., list[ResultRow]]
METHODS = ("original", "t3d", "alpha")


@pytest.fixture
def rows(make_rows: Make) -> list[ResultRow]:
    return make_rows(METHODS, seeds=(0, 1), block_sizes=(4, 8))


def table(markdown: str, title: str) -> list[list[str]]:
    """The entries below a title, without header and rule."""
    (part,) = re.findall(rf"### {title}\n\n((?:\|.*\n)+)", markdown)
    lines = [
        [c.strip().replace("**", "") for c in line[1:-1].split("|")] for line in part.splitlines()
    ]
    return lines[2:]


def numbers(entry: str) -> list[float]:
    return [float(x) for x in re.findall(r"[-+]?[\d.]+", entry)]


def test_files_hold_every_point_and_score(rows: list[ResultRow], tmp_path: Path) -> None:
    found = frontier(rows)
    output = tmp_path / "new" / "frontier"
    write_frontier(output, found, provenance={"seed": 7})
    names = {"frontier.json", "frontier.md", "frontier.png"}
    assert {path.name for path in output.iterdir()} == names
    document = json.loads((output / "frontier.json").read_text(encoding="utf-8"))
    assert (document["format"], document["provenance"]) == (2, {"seed": 7})
    for point, kept in zip(found.points, document["points"], strict=True):
        assert kept["condition"] == point.condition.document()
        assert kept["ci95"] == list(point.ci95)
        same = ("name", "accuracy", "tokens_per_forward", "pareto", "pareto_seconds")
        assert [kept[key] for key in same] == [getattr(point, key) for key in same]
    assert document["scores"] == [vars(score) for score in found.scores]
    markdown = (output / "frontier.md").read_text(encoding="utf-8")
    assert "(frontier.png)" in markdown
    lines = table(markdown, "Settings, slow to fast")
    order = [p for name in METHODS for p in found.points if p.name == name]
    for point, line in zip(order, lines, strict=True):
        assert (line[0], line[2], line[-1]) == (
            point.name,
            str(point.condition.decoding.block_size),
            "2",
        )
        shares = [100 * x for x in (point.accuracy, *point.ci95)]
        assert numbers(line[3]) == pytest.approx(shares, abs=0.0501)
        assert numbers(line[4]) == pytest.approx([point.tokens_per_forward], abs=0.00501)
        assert numbers(line[5]) == pytest.approx([point.tokens_per_second], abs=0.0501)
        assert ["●" in entry for entry in line[4:6]] == [point.pareto, point.pareto_seconds]
    lines = table(markdown, "Accuracy under parallelism")
    scores = {score.name: score for score in found.scores}
    assert [line[0] for line in lines] == list(METHODS)
    for name, *entries in lines:
        score = scores[name]
        assert numbers(entries[0]) == pytest.approx([score.aup], abs=0.0501)
        assert entries[1] == f"{score.num_kept} of {score.num_points}"
    with Image.open(output / "frontier.png") as image:
        image.load()
        assert image.format == "PNG"


def test_the_order_of_rows_changes_no_file(rows: list[ResultRow], tmp_path: Path) -> None:
    some = [row for row in rows if row.method != "alpha" and row.decoding.block_size == 4]
    for name, order in (("a", some), ("b", random.Random(1).sample(some, len(some)))):
        write_frontier(tmp_path / name, frontier(order), provenance={})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_terminal_of_80_columns_shows_every_number(rows: list[ResultRow]) -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(render_terminal(frontier_sections(frontier(rows))))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    found = frontier(rows)
    for point in found.points:
        assert f"{100 * point.accuracy:.1f}" in text
        assert f"[{100 * point.ci95[0]:.1f}, {100 * point.ci95[1]:.1f}]" in text
        assert f"{point.tokens_per_forward:.2f}" in text
    assert all(f"{score.aup:.1f}" in text for score in found.scores)


def test_a_single_point_is_a_frontier(make_rows: Make, tmp_path: Path) -> None:
    write_frontier(tmp_path, frontier(make_rows(("t3d",))[:1]), provenance={})
    ((*_, forward, second),) = table(
        (tmp_path / "frontier.md").read_text(encoding="utf-8"), "Settings, slow to fast"
    )
    assert "●" in forward
    assert "●" in second
