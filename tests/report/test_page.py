from __future__ import annotations

import base64
import hashlib
import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.report.page import NUM_SHADES, Page, page, part
from t3d.report.sheets import Entry, Sheet, render_html
from t3d.serve.playground import playground_page
from tests.report.parsed import Parsed

PAGES = [page("x", part("trajectories.html"), [part("trajectories.js")]), playground_page()]

values = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values, st.text(st.characters(exclude_categories=("Cc", "Cs"))))
def test_data_and_titles_stay_what_they_are(data: object, title: str) -> None:
    made = Parsed(page(title, "<p>body</p>", ["1;"], data=data).html)
    assert json.loads(made.scripts[0]) == data
    assert len(made.scripts) == 2
    assert title in made.prose


@pytest.mark.parametrize("made", PAGES, ids=["trajectories", "playground"])
def test_a_page_loads_nothing_and_runs_its_own_script_alone(made: Page) -> None:
    found = Parsed(made.html)
    assert made.policy in found.get("meta", "content")
    sources = dict(source.split(" ", 1) for source in made.policy.split("; "))
    assert sources["default-src"] == "'none'"
    for key, text in (("script-src", found.scripts[-1]), ("style-src", found.style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert sources[key] == f"'sha256-{digest}'"
    assert not re.search(r"https?:|url\(|@import|innerHTML|insertAdjacent|eval\(", made.html)
    # Such attributes would be blocked, or load something.
    names = {name for _, name, _ in found.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"style", "src"}


def test_tables_are_text_and_tell_which_columns_are_numbers() -> None:
    lines = [[Entry("<b>"), Entry("1.0", "[0, 2]", bold=True)], [Entry("b"), Entry("–")]]
    sheet = Sheet("A < B", ["name", "x &\ny"], [lines], "a & b", num_names=1)
    made = Parsed(render_html([("Part <1>", [sheet])]))
    for text in ("Part <1>", "A < B", "<b>", "a & b", "1.0"):
        assert text in made.prose
    assert made.get("td", "class") == made.get("th", "class") * 2 == ["number"] * 2


def luminance(colour: str) -> float:
    """WCAG 2.2, with the threshold of the sRGB standard."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_shades_are_legible_and_run_from_dark_to_light() -> None:
    found = re.findall(r"\.c(\d+)\{background:(#\w{6});color:(#\w{6})\}", PAGES[0].html)
    assert [int(shade) for shade, _, _ in found] == list(range(NUM_SHADES))
    assert f"{NUM_SHADES - 1} * Math.min" in part("tokens.js")
    assert all(contrast(background, ink) >= 4.5 for _, background, ink in found)
    light = [luminance(background) for _, background, _ in found]
    assert all(a < b for a, b in pairwise(light))


def test_both_colour_schemes_are_legible() -> None:
    style = part("page.css")
    schemes = [dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in style.split("@media")[:2]]
    assert [len(scheme) for scheme in schemes] == [9, 9]
    for scheme in schemes:
        for ink in ("ink", "soft", "right", "wrong", "focus"):
            for ground in ("page", "card"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5
        # Marks that are no text need 3 to 1.
        assert contrast(scheme["cut"], scheme["card"]) >= 3
