"""Decoded responses with every token coloured by the denoising step that committed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from t3d.core.files import write_bytes
from t3d.report.colours import step_colours
from t3d.report.page import page, part

if TYPE_CHECKING:
    from t3d.decoding.request import Completion
    from t3d.tasks import Grade

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
    log_probs: list[float] | None
    """Untempered log-probability (nats) of each token at commit; None where nobody noted it."""
    block_offset: int
    """Position of the first response token in its block: prompt_length % block_size."""
    block_size: int
    correct: bool | None
    """Verdict on the answer; None where nothing was graded."""
    passes: int | None
    """Number of forward passes of the response, of every kind; None where nobody counted them."""
    faithful: bool | None = None
    """Verdict on faithfulness; None where that is not graded."""
    reason: str | None = None
    """Reason why a response with the right answer is unfaithful."""

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.step_map)
        assert self.log_probs is None or len(self.log_probs) == len(self.tokens)
        assert all(step >= 0 for step in self.step_map), "a token before the stop is committed"
        assert 0 <= self.block_offset < self.block_size

    @property
    def cost(self) -> str:
        """'12 passes for 48 tokens'."""
        num = len(self.tokens)
        tokens = f"{num} token{'s' if num != 1 else ''}"
        if self.passes is None:
            return tokens
        return f"{self.passes} pass{'es' if self.passes != 1 else ''} for {tokens}"

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


def _num_steps(views: Sequence[TrajectoryView]) -> int:
    return 1 + max((step for view in views for step in view.step_map), default=0)


def render_commits(
    tokens: Sequence[tuple[str, int] | None], num_steps: int, *, block_offset: int, block_size: int
) -> Text:
    """A response, finished or still being decoded, for a terminal.

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
        background, ink = step_colours(min(step, num_steps - 1), num_steps)
        shown = said.translate(_VISIBLE).replace("\n", "↵\n")
        text.append(shown, style=f"{ink} on {background}")
    return text


def render_responses(question: str, views: Sequence[TrajectoryView]) -> RenderableType:
    """The responses to one question, for a terminal."""
    num_steps = _num_steps(views)
    legend = Text.assemble(("step ", "dim"))
    for step in range(num_steps):
        background, ink = step_colours(step, num_steps)
        legend.append(f" {step + 1} ", style=f"{ink} on {background}")
    legend.append("  │ block boundary", style="dim")
    parts: list[RenderableType] = [Text(question.translate(_VISIBLE), style="bold"), "", legend]
    for view in views:
        colour = {True: "green", False: "red", None: ""}[view.correct]
        title = Text.assemble(
            (view.title, "bold"), "  ", (view.verdict, colour), "  ", (view.cost, "dim")
        )
        tokens = list(zip(view.tokens, view.step_map, strict=True))
        text = render_commits(
            tokens, num_steps, block_offset=view.block_offset, block_size=view.block_size
        )
        parts += ["", title, Padding(text, (0, 0, 0, 2))]
    return Group(*parts)


def trajectory_data(problems: Sequence[Problem]) -> dict[str, Any]:
    """What the script of a page of trajectories reads, as JSON.

    A view's title tells which side of a comparison it is. A text that many tokens share is there
    once.
    """
    views = [view for _, _, views in problems for view in views]
    sides = list(dict.fromkeys(view.title for view in views))
    texts: dict[str, int] = {}

    def response(view: TrajectoryView) -> dict[str, Any]:
        tokens = [token.translate(_VISIBLE) for token in view.tokens]
        return {
            "tokens": [texts.setdefault(token, len(texts)) for token in tokens],
            "steps": view.step_map,
            # Adding 0 makes -0.0 shorter.
            "log_probs": view.log_probs and [round(x, 3) + 0.0 for x in view.log_probs],
            "offset": view.block_offset,
            "size": view.block_size,
            "correct": view.correct,
            "verdict": view.verdict,
            "cost": view.cost,
            "passes": view.passes,
        }

    found = []
    for question, answer, own in problems:
        by_side = {view.title: response(view) for view in own}
        found.append(
            {
                "question": question.translate(_VISIBLE),
                "answer": answer,
                "responses": [by_side.get(side) for side in sides],
            }
        )
    return {
        "sides": sides,
        "texts": list(texts),
        "num_steps": _num_steps(views),
        "problems": found,
    }


def write_html(path: Path, problems: Sequence[Problem]) -> None:
    """Write one self-contained page of trajectories, atomically."""
    title = "Decoding trajectories"
    body = f"<h1>{title}</h1>\n{part('trajectories.html')}"
    made = page(title, body, [part("trajectories.js")], data=trajectory_data(problems))
    write_bytes(path, made.html.encode())
