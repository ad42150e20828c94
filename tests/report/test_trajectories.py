from __future__ import annotations

import dataclasses
import io
import re
import tempfile
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from t3d.decoding.request import Completion, Passes
from t3d.report.trajectories import Problem, TrajectoryView, render_responses, view_of, write_html
from t3d.tasks import Grade

VOID = {"meta"}
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "span"}
TAGS |= {"section", "article", "header", "i"}
TOKENS = ["Tom", " has", " <b>", "&amp;", "\n\n", '"5"', " $x", "[red]", "<|im_end|>"]


class Page(HTMLParser):
    """The page as a reader's program sees it; fails on unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.articles: list[list[tuple[str, str | None, str | None]]] = []
        """(class, title, text) of each token and block boundary of each article."""
        self.prose: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag in VOID:
            return
        found = dict(attrs)
        self.open.append((tag, found))
        if tag == "article":
            self.articles.append([])
        inside = any(name == "article" for name, _ in self.open)
        if tag == "span" and inside and (found.get("class") or "").split()[0] in {"t", "b"}:
            self.articles[-1].append((found["class"] or "", found.get("title"), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] == "style":
            self.style += data
        elif any(attrs.get("class") == "text" for _, attrs in self.open):
            kind, title, text = self.articles[-1].pop()
            self.articles[-1].append((kind, title, (text or "") + data))
        else:
            self.prose.append(data)

    def tokens(self, article: int) -> list[str | None]:
        return [text for kind, _, text in self.articles[article] if kind != "b"]


def view(tokens: list[str], block_offset: int = 1, **changes: Any) -> TrajectoryView:
    values: dict[str, Any] = {
        "title": "t3d, 2 tokens a step",
        "step_map": [i % 4 for i in range(len(tokens))],
        "log_probs": [-0.25 * i for i in range(len(tokens))],
        "block_size": 4,
        "correct": True,
        "passes": 7,
    }
    return TrajectoryView(tokens=tokens, block_offset=block_offset, **(values | changes))


def page(problems: list[Problem]) -> Page:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trajectories.html"
        write_html(path, problems)
        assert list(Path(directory).iterdir()) == [path]
        return Page(path.read_text(encoding="utf-8"))


def plain(views: list[TrajectoryView], question: str = "How many?", width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render_responses(question, views))
    return out.getvalue()


def test_view_of_ends_at_the_stop_token() -> None:
    completion = Completion(
        response_ids=[10, 11, 12, 13, 14],
        step_map=[0, 1, 0, -1, 2],
        log_probs=[-0.1, -0.2, -0.3, 0.0, -0.5],
        num_response_tokens=3,
        finish_reason="stop",
        passes=Passes(prefill=1, denoising=3, commit=1),
    )
    grade = Grade(False, "7", string_correct=True, faithful=False, reason="names Tom")
    made = view_of(completion, str, title="t", prompt_length=7, block_size=4, grade=grade)
    assert made == TrajectoryView(
        title="t",
        tokens=["10", "11", "12"],
        step_map=[0, 1, 0],
        log_probs=[-0.1, -0.2, -0.3],
        block_offset=3,
        block_size=4,
        correct=False,
        passes=5,
        faithful=False,
        reason="names Tom",
    )


@given(st.integers(1, 9), st.integers(0, 50), st.integers(1, 30))
def test_blocks_lie_on_the_absolute_grid(block_size: int, prompt_length: int, num: int) -> None:
    made = view(["x"] * num, prompt_length % block_size, block_size=block_size)
    block = [(prompt_length + i) // block_size for i in range(num)]
    starts = [i for i in range(num) if made.starts_block(i)]
    assert starts == [0] + [i for i in range(1, num) if block[i] != block[i - 1]]


# Control characters are shown as pictures; lone surrogates are no text.
text = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.just("\n"), max_size=8)


@example(tokens=TOKENS, name="<i>&amp;", question="<!-- </p> &lt; $legend")
@given(tokens=st.lists(text.filter(bool), min_size=1, max_size=12), name=text, question=text)
def test_html_holds_every_token_as_text(tokens: list[str], name: str, question: str) -> None:
    made = page([(question, name, [view(tokens, title=name), view(tokens[::-1])])])
    assert made.tokens(0) == tokens
    assert made.tokens(1) == tokens[::-1]
    assert "".join(made.prose).count(name) >= 2
    assert question in "".join(made.prose)
    assert made.tags <= TAGS


def test_html_tells_step_log_probability_and_blocks() -> None:
    made = page([("q", None, [view(TOKENS)])])
    rows = made.articles[0]
    # Offset 1 in blocks of 4: boundaries before tokens 3 and 7.
    assert [i for i, row in enumerate(rows) if row[0] == "b"] == [3, 8]
    for i, (kind, title, _) in enumerate(row for row in rows if row[0] != "b"):
        assert kind == f"t s{i % 4}"
        assert title == f"step {i % 4 + 1}, log-probability {-0.25 * i:.2f}"


def test_html_tells_answers_verdicts_and_passes() -> None:
    views = [view(["a"], correct=correct, passes=p) for correct, p in ((True, 1), (False, 3))]
    made = "\n".join(page([("q", "42", [*views, view(["a", "b"], correct=None)])]).prose)
    assert "Gold answer: 42" in made
    assert made.count("✓ right") == made.count("✗ wrong") == 1
    for cost in ("1 pass for 1 token", "3 passes for 1 token", "7 passes for 2 tokens"):
        assert made.count(cost) == 1
    assert "Gold answer" not in "".join(page([("q", None, [])]).prose)


@pytest.mark.parametrize(
    ("correct", "faithful", "reason", "verdict"),
    [
        (None, None, None, ""),
        (True, None, None, "✓ right"),
        (False, None, "timeout", "✗ wrong"),
        (True, True, None, "✓ right"),
        (False, True, None, "✗ wrong"),
        (False, False, None, "✗ wrong, unfaithful"),
        (False, False, "says 1 + 1 = <b>", "✗ unfaithful: says 1 + 1 = <b>"),
    ],
)
def test_a_verdict_tells_a_wrong_answer_from_an_unfaithful_response(
    correct: bool | None, faithful: bool | None, reason: str | None, verdict: str
) -> None:
    made = dataclasses.replace(view(["a"], correct=correct), faithful=faithful, reason=reason)
    assert made.verdict == verdict
    assert verdict in "\n".join(page([("q", None, [made])]).prose)
    assert verdict in plain([made])


def test_html_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    write_html(tmp_path / "x.html", [("q", "a", [view(TOKENS)])])
    source = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img|\$", source.replace(" $x", ""))
    names = {name for name, _ in Page(source).attributes}
    assert names == {"lang", "charset", "name", "content", "http-equiv", "class", "title", "style"}


def luminance(colour: str) -> float:
    """WCAG 2.2, with the threshold of the sRGB standard."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8, 32])
def test_steps_are_legible_and_run_from_dark_to_light(num_steps: int) -> None:
    views = [view(["x"] * num_steps, 0, step_map=list(range(num_steps)))]
    style = page([("q", None, views)]).style
    found = re.findall(r"\.s(\d+) \{ background: (#\w{6}); color: (#\w{6}); \}", style)
    assert [int(step) for step, _, _ in found] == list(range(num_steps))
    assert all(contrast(background, ink) >= 4.5 for _, background, ink in found)
    light = [luminance(background) for _, background, _ in found]
    assert all(a < b for a, b in pairwise(light))


def test_both_colour_schemes_are_legible() -> None:
    style = page([]).style
    schemes = [dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in style.split("@media")[:2]]
    assert [len(scheme) for scheme in schemes] == [9, 9]
    for scheme in schemes:
        for ink in ("ink", "soft"):
            assert contrast(scheme[ink], scheme["page"]) >= 4.5
        for ink in ("ink", "soft", "right", "wrong"):
            assert contrast(scheme[ink], scheme["card"]) >= 4.5
        # Marks that are no text need 3 to 1.
        assert contrast(scheme["cut"], scheme["card"]) >= 3


def test_terminal_shows_tokens_blocks_and_verdict() -> None:
    lines = plain([view(TOKENS)], question="How [bold]many?").splitlines()
    assert lines[0].rstrip() == "How [bold]many?"
    assert lines[2].rstrip() == "step  1  2  3  4   │ block boundary"
    assert lines[4].rstrip() == "t3d, 2 tokens a step  ✓ right  7 passes for 9 tokens"
    assert [line.rstrip() for line in lines[5:]] == [
        "  Tom has <b>│&amp;↵",
        "  ↵",
        '  "5" $x│[red]<|im_end|>',
    ]


def test_terminal_colours_by_step() -> None:
    made = render_responses("q", [view(["a", "b", "c"], 0, step_map=[0, 1, 0])])
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=80)
    console.print(made)
    (line,) = [line for line in out.getvalue().splitlines() if "a\x1b" in line]
    first, second, third = re.findall(r"48;2;(\d+;\d+;\d+)m[abc]", line)
    assert first == third != second


@pytest.mark.parametrize("control", ["\x1b[2J", "\r", "\x00", "\x9b2J", "\x7f", "\t"])
def test_control_characters_become_visible(control: str, tmp_path: Path) -> None:
    made = plain([view([f"a{control}b"])], question=control)
    assert control[0] not in made
    write_html(tmp_path / "x.html", [(control, None, [view([f"a{control}b"])])])
    source = (tmp_path / "x.html").read_bytes().decode()
    assert control[0] not in source
    (shown,) = Page(source).tokens(0)
    assert shown is not None
    assert len(shown) == len(control) + 2
