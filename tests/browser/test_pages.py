from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from t3d.cli.main import main
from t3d.evaluation.evaluate import Evaluation, evaluation_folders
from t3d.report.trajectories import Problem, TrajectoryView, write_html

SCHEMES = [
    {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    for width, scheme in ((360, "light"), (1200, "dark"))
]


def view(title: str, number: int, correct: bool) -> TrajectoryView:
    tokens = [f" {word}" for word in range(1 + number % 40)]
    return TrajectoryView(
        title=title,
        tokens=tokens,
        step_map=[i % 4 for i in range(len(tokens))],
        log_probs=[-0.1] * len(tokens),
        block_offset=1,
        block_size=4,
        correct=correct,
        passes=len(tokens),
    )


PROBLEMS: list[Problem] = [
    (
        f"What is {n}? </script><b>",
        str(n),
        [view("teacher", n, n % 3 > 0), view("student", n, n % 5 > 0)],
    )
    for n in range(3000)
]


@pytest.fixture(scope="module")
def thousands(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pages") / "trajectories.html"
    write_html(path, PROBLEMS)
    return path.as_uri()


def test_thousands_of_problems_are_drawn_as_they_come_near(page: Page, thousands: str) -> None:
    page.goto(thousands)
    cards = page.locator(".card")
    assert cards.count() <= 40
    assert "</script><b>" in cards.first.inner_text()
    before = cards.count()
    page.locator("#more").scroll_into_view_if_needed()
    expect(cards.nth(before)).to_be_attached()


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, lambda n: True),
        ({"#verdict": "right"}, lambda n: n % 3 > 0 and n % 5 > 0),
        ({"#verdict": "wrong"}, lambda n: not (n % 3 > 0 and n % 5 > 0)),
        ({"#verdict": "first"}, lambda n: n % 3 > 0 and n % 5 == 0),
        ({"#verdict": "second"}, lambda n: n % 3 == 0 and n % 5 > 0),
        ({"#right": "", "#verdict": "wrong"}, lambda n: n % 3 == 0),
        ({"#least": "10", "#most": "12"}, lambda n: 10 <= 1 + n % 40 <= 12),
        ({"#words": "WHAT IS 17"}, lambda n: str(n).startswith("17")),
        ({"#words": " 39"}, lambda n: n % 40 == 39 or str(n).startswith("39")),
    ],
)
def test_filters(
    page: Page, thousands: str, fields: dict[str, str], wanted: Callable[[int], bool]
) -> None:
    page.goto(thousands)
    for field, value in fields.items():
        if page.locator(field).evaluate("field => field.tagName") == "SELECT":
            page.select_option(field, value)
        else:
            page.fill(field, value)
    count = sum(wanted(n) for n in range(len(PROBLEMS)))
    expect(page.locator("#found")).to_contain_text(f"{count} of 3000 problems")
    first = next(n for n in range(len(PROBLEMS)) if wanted(n))
    expect(page.locator(".card").first).to_contain_text(f"What is {first}?")


@pytest.mark.parametrize("page", SCHEMES, indirect=True, ids=["phone", "wide"])
def test_an_evaluation_is_replayed_by_keyboard(
    page: Page, evaluation: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "page.html"
    assert main(["view", str(evaluation), "--output", str(output)]) == 0
    page.goto(output.as_uri())
    full, fast = (Evaluation.load(path) for path in sorted(evaluation_folders(evaluation))[::-1])
    assert full.row.decoding.denoising_steps > fast.row.decoding.denoising_steps
    card = page.locator(".card").first
    boxes = card.locator(".text")
    completions = [one.samples[0].completion for one in (full, fast)]
    slider = card.locator("input[type=range]")
    slider.focus()
    for done in (0, 1, 2):
        page.keyboard.press("Home" if done == 0 else "ArrowRight")
        for box, completion in zip(boxes.all(), completions, strict=True):
            # The first block: what its first steps committed stands, the rest is masked.
            offset = len(full.samples[0].prompt_ids) % 4
            first = completion.step_map[: 4 - offset]
            steps = sorted(set(first))[:done]
            shown = box.locator(".t").evaluate_all(
                "cells => cells.map(cell => !cell.classList.contains('masked'))"
            )
            assert shown[: len(first)] == [
                step in steps or done > len(set(first)) for step in first
            ]
    page.keyboard.press("End")
    expect(boxes.first.locator(".masked")).to_have_count(0)
    text = "".join(boxes.first.locator(".t").all_text_contents())
    assert full.samples[0].output in text
    boxes.first.focus()
    page.keyboard.press("ArrowRight")
    readout = card.locator(".readout").first
    expect(readout).to_contain_text(re.compile(r"token 1 of \d+, .*confidence \d+\.\d %"))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("page", SCHEMES, indirect=True, ids=["phone", "wide"])
def test_a_report_opens_with_all_its_parts(page: Page, evaluation: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    assert main(["report", str(evaluation), "--html", str(output)]) == 0
    page.goto(output.as_uri())
    headings = page.locator("h2").all_text_contents()
    assert headings == ["mini_gsm", "Checkpoints", "Frontier", "Examples", "Provenance"]
    assert page.locator("img").evaluate_all("all => all.every(one => one.naturalWidth > 100)")
    expect(page.locator("table").first).to_contain_text("original")
    expect(page.locator("#found")).to_contain_text("6 of 6 problems")
    page.locator("summary").click()
    expect(page.locator("pre")).to_contain_text('"num_problems": 6')
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
