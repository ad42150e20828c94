from __future__ import annotations

import dataclasses
import io
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from t3d.decoding.request import Completion, Passes
from t3d.report.trajectories import (
    Problem,
    TrajectoryView,
    render_commits,
    render_responses,
    view_of,
    write_html,
)
from t3d.tasks import Grade
from tests.report.parsed import Parsed

TOKENS = ["Tom", " has", " <b>", "&amp;", "\n\n", '"5"', " $x", "[red]", "<|im_end|>"]


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


def written(problems: list[Problem]) -> dict[str, Any]:
    """What the scripts of the page read; the page holds nothing of it in another place."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trajectories.html"
        write_html(path, problems)
        assert list(Path(directory).iterdir()) == [path]
        return json.loads(Parsed(path.read_text(encoding="utf-8")).scripts[0])


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
    offset = prompt_length % block_size
    made = render_commits([("x", 0)] * num, 1, block_offset=offset, block_size=block_size)
    blocks = Counter((prompt_length + i) // block_size for i in range(num))
    assert [len(part) for part in made.plain.split("│")] == list(blocks.values())


# Control characters are shown as pictures; lone surrogates are no text.
text = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.just("\n"), max_size=8)


@example(tokens=TOKENS, name="<i>&amp;", question="<!-- </script> &lt; $title")
@given(tokens=st.lists(text.filter(bool), min_size=1, max_size=12), name=text, question=text)
def test_html_holds_every_token_as_text(tokens: list[str], name: str, question: str) -> None:
    made = written([(question, name, [view(tokens, title=name), view(tokens[::-1], title="b")])])
    [problem] = made["problems"]
    assert (problem["question"], problem["answer"]) == (question, name)
    assert made["sides"] == list(dict.fromkeys((name, "b")))
    shown = [[made["texts"][i] for i in own["tokens"]] for own in problem["responses"]]
    assert shown[-1] == tokens[::-1]
    assert name == "b" or shown[0] == tokens


def test_html_tells_steps_confidence_blocks_and_sides() -> None:
    first, second = view(TOKENS), view(["a"], title="other", passes=None, log_probs=None)
    made = written([("q", None, [first, second]), ("r", None, [second])])
    assert made["num_steps"] == 4
    (left, right), (none, alone) = (problem["responses"] for problem in made["problems"])
    assert left["steps"] == first.step_map
    assert left["log_probs"] == first.log_probs
    assert (left["offset"], left["size"]) == (1, 4)
    assert (left["cost"], right["cost"]) == ("7 passes for 9 tokens", "1 token")
    assert (right["passes"], right["log_probs"]) == (None, None)
    assert (none, alone) == (None, right)


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
    assert written([("q", None, [made])])["problems"][0]["responses"][0]["verdict"] == verdict
    assert verdict in plain([made])


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
def test_control_characters_become_visible(control: str) -> None:
    made = plain([view([f"a{control}b"])], question=control)
    assert control[0] not in made
    [problem] = (page := written([(control, None, [view([f"a{control}b"])])]))["problems"]
    (shown,) = page["texts"]
    assert control[0] not in shown + problem["question"]
    assert len(shown) == len(control) + 2
