"""Decoded responses with every token coloured by the denoising step that committed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from t3d.core.files import write_bytes

if TYPE_CHECKING:
    from t3d.decoding.request import Completion
    from t3d.tasks import Grade

RGB = tuple[int, int, int]

# From early (dark) to late (light); lightness rises evenly, so it also reads without colour.
_RAMP: tuple[RGB, ...] = (
    (59, 47, 153),
    (66, 146, 198),
    (48, 170, 158),
    (150, 211, 128),
    (245, 230, 120),
)

# Control characters would move a terminal's cursor or be invisible in a page, so their Unicode
# pictures are shown instead.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) != "\n"}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD) | {0x7F: 0x2421}


@dataclass(frozen=True)
class TrajectoryView:
    """One response as the report shows it: tokens up to and including the stop token."""

    title: str
    """Label of who decoded, and how: 'original, 1 token a step'."""
    tokens: list[str]
    step_map: list[int]
    """0-based denoising step within the block that committed each token."""
    log_probs: list[float]
    """Untempered log-probability (nats) of each token at commit."""
    block_offset: int
    """Position of the first response token in its block: prompt_length % block_size."""
    block_size: int
    correct: bool | None
    """Verdict on the answer; None where nothing was graded."""
    passes: int
    """Number of forward passes of the response, of every kind."""
    faithful: bool | None = None
    """Verdict on faithfulness; None where that is not graded."""
    reason: str | None = None
    """Reason why a response with the right answer is unfaithful."""

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.step_map) == len(self.log_probs)
        assert all(step >= 0 for step in self.step_map), "a token before the stop is committed"
        assert 0 <= self.block_offset < self.block_size

    def starts_block(self, index: int) -> bool:
        """Whether token `index` is the first of a block, or of the response."""
        return index == 0 or (self.block_offset + index) % self.block_size == 0

    @property
    def cost(self) -> str:
        """'12 passes for 48 tokens'."""
        num = len(self.tokens)
        passes = f"{self.passes} pass{'es' if self.passes != 1 else ''}"
        return f"{passes} for {num} token{'s' if num != 1 else ''}"

    @property
    def verdict(self) -> str:
        if self.correct is not False or self.faithful is not False:
            return {True: "✓ right", False: "✗ wrong", None: ""}[self.correct]
        return "✗ wrong, unfaithful" if self.reason is None else f"✗ unfaithful: {self.reason}"


Problem = tuple[str, str | None, Sequence[TrajectoryView]]
"""Question, gold answer if known, and the responses to compare."""


def view_of(
    completion: Completion,
    token_text: Callable[[int], str],
    *,
    title: str,
    prompt_length: int,
    block_size: int,
    grade: Grade | None = None,
) -> TrajectoryView:
    """The view of a completion; `token_text` turns one token id into its text."""
    num = completion.num_response_tokens
    return TrajectoryView(
        title=title,
        tokens=[token_text(token) for token in completion.token_ids],
        step_map=completion.step_map[:num],
        log_probs=completion.log_probs[:num],
        block_offset=prompt_length % block_size,
        block_size=block_size,
        correct=None if grade is None else grade.correct,
        passes=completion.passes.total,
        faithful=None if grade is None else grade.faithful,
        reason=None if grade is None else grade.reason,
    )


def _luminance(colour: RGB) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _colours(step: int, num_steps: int) -> tuple[str, str]:
    """(background, text) of a step as hex, the text black or white, whichever reads better.

    The better of the two has a contrast of at least sqrt(21) = 4.58 on any background.
    """
    place = step / max(num_steps - 1, 1) * (len(_RAMP) - 1)
    left = min(int(place), len(_RAMP) - 2)
    share = place - left
    mixed = [round(a + (b - a) * share) for a, b in zip(_RAMP[left], _RAMP[left + 1], strict=True)]
    light = _luminance((mixed[0], mixed[1], mixed[2]))
    text = "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"
    return "#" + "".join(f"{value:02x}" for value in mixed), text


def _num_steps(views: Sequence[TrajectoryView]) -> int:
    return 1 + max((step for view in views for step in view.step_map), default=0)


def _rich_text(view: TrajectoryView, num_steps: int) -> Text:
    text = Text()
    for i, (token, step) in enumerate(zip(view.tokens, view.step_map, strict=True)):
        if i and view.starts_block(i):
            text.append("│", style="dim")
        background, ink = _colours(step, num_steps)
        token = token.translate(_VISIBLE).replace("\n", "↵\n")
        text.append(token, style=f"{ink} on {background}")
    return text


def render_responses(question: str, views: Sequence[TrajectoryView]) -> RenderableType:
    """The responses to one question, for a terminal."""
    num_steps = _num_steps(views)
    legend = Text.assemble(("step ", "dim"))
    for step in range(num_steps):
        background, ink = _colours(step, num_steps)
        legend.append(f" {step + 1} ", style=f"{ink} on {background}")
    legend.append("  │ block boundary", style="dim")
    parts: list[RenderableType] = [Text(question.translate(_VISIBLE), style="bold"), "", legend]
    for view in views:
        colour = {True: "green", False: "red", None: ""}[view.correct]
        title = Text.assemble(
            (view.title, "bold"), "  ", (view.verdict, colour), "  ", (view.cost, "dim")
        )
        parts += ["", title, Padding(_rich_text(view, num_steps), (0, 0, 0, 2))]
    return Group(*parts)


def _token_html(token: str, step: int, log_prob: float) -> str:
    text = escape(token.translate(_VISIBLE)).replace("\n", '<i class="n"></i>\n')
    title = f"step {step + 1}, log-probability {log_prob:.2f}"
    return f'<span class="t s{step}" title="{title}">{text}</span>'


def _view_html(view: TrajectoryView, most_passes: int) -> str:
    tokens = []
    for i, token in enumerate(view.tokens):
        if i and view.starts_block(i):
            tokens.append('<span class="b"></span>')
        tokens.append(_token_html(token, view.step_map[i], view.log_probs[i]))
    mark = {True: "right", False: "wrong", None: ""}[view.correct]
    width = 100 * view.passes / max(most_passes, 1)
    return (
        f"<article><header><h3>{escape(view.title)}</h3>"
        f'<span class="mark {mark}">{escape(view.verdict)}</span>'
        f'<span class="cost">{view.cost}</span></header>'
        f'<div class="bar"><i style="width:{width:.1f}%"></i></div>'
        f'<div class="text">{"".join(tokens)}</div></article>'
    )


def _problem_html(number: int, problem: Problem) -> str:
    question, answer, views = problem
    most_passes = max((view.passes for view in views), default=0)
    gold = "" if answer is None else f'<p class="gold">Gold answer: {escape(answer)}</p>'
    articles = "\n".join(_view_html(view, most_passes) for view in views)
    question = escape(question.translate(_VISIBLE))
    heading = f'<h2>Problem {number}</h2><p class="question">{question}</p>{gold}'
    return f"<section>{heading}\n{articles}</section>"


def write_html(path: Path, problems: Sequence[Problem]) -> None:
    """Write one self-contained page, atomically. It loads nothing and runs no script."""
    num_steps = _num_steps([view for _, _, views in problems for view in views])
    colours = [_colours(step, num_steps) for step in range(num_steps)]
    legend = [f'<span class="t s{step}">{step + 1}</span>' for step in range(num_steps)]
    template = Template(files("t3d.report").joinpath("trajectory.html").read_text("utf-8"))
    page = template.substitute(
        steps="\n".join(
            f".s{step} {{ background: {background}; color: {ink}; }}"
            for step, (background, ink) in enumerate(colours)
        ),
        legend=f'Step {"".join(legend)}<span class="b"></span>block boundary',
        problems="\n".join(
            _problem_html(number, problem) for number, problem in enumerate(problems, 1)
        ),
    )
    write_bytes(path, page.encode())


def render_commits(
    tokens: Sequence[tuple[str, int] | None], num_steps: int, *, block_offset: int, block_size: int
) -> Text:
    """A response that is still being decoded, for a terminal.

    Args:
        tokens: text and step of each position; None for a masked one.
        num_steps: number of steps that have a colour of their own.
        block_offset: position of the first token in its block.
        block_size: tokens a block.
    """
    text = Text()
    for i, token in enumerate(tokens):
        if i and (block_offset + i) % block_size == 0:
            text.append("│", style="dim")
        if token is None:
            text.append(" ░░", style="dim")
            continue
        said, step = token
        background, ink = _colours(min(step, num_steps - 1), num_steps)
        shown = said.translate(_VISIBLE).replace("\n", "↵\n")
        text.append(shown, style=f"{ink} on {background}")
    return text
