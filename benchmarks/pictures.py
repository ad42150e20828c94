"""Pictures of the documents: why one pass a block fails, the training layout, a response's states,
a verified pass.

python -m benchmarks.pictures
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import t3d
from t3d.core.blocks import CLEAN, BlockLayout, may_attend
from t3d.core.trajectory import Trajectory, TrajectoryBatch, training_rows
from t3d.decoding.rollout import encode_prompts, record
from t3d.models import LanguageModel
from t3d.noising import TrajectoryState
from t3d.noising.base import NoiserInput, Vocabulary
from t3d.report.figure import INK, SOFT, save

DOCS = Path(__file__).parents[1] / "docs"
BLOCK_SIZE = 4
PROMPT, RESPONSE = 6, 9
"""Number of prompt tokens, which fill a block and a half, and of response tokens."""
PROBLEM = 7
"""Number of the test problem whose response is drawn; it fills two lines."""
COLLAPSE = (0, 17)
"""Numbers of the test problem and of its block whose predictions are drawn."""
PROMPT_COLOUR, MASKED, HIDDEN, SEES_CLEAN, SEES_OWN = (
    *("#d9d9d9", "#ffffff", "#f4f4f4", "#56b4e9", "#d55e00"),
)
STEPS = ("#08519c", "#3f8fc5", "#94c4df", "#d6e6f4")
"""Colours of the denoising steps within a block, from the first to the fourth."""


def cell(
    axes: Axes, x: float, y: float, colour: str, text: str = "", *, edge: str = "white", size=9.0
) -> None:
    """A square of the unit grid with text in it."""
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=edge, linewidth=1))
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    ink = INK if 0.3 * red + 0.6 * green + 0.1 * blue > 120 else "white"
    if colour == MASKED:
        ink = "#9a9a9a"
    axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=size, color=ink)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure in inches with one empty axes; rows are counted downwards."""
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    axes.invert_yaxis()
    return figure, axes


def attention_picture(
    sees: Tensor,
    is_clean: Sequence[bool],
    columns: Sequence[tuple[str, str]],
    blocks: Sequence[str],
    parts: Sequence[tuple[int, int, str]],
    note: str,
) -> Figure:
    """Who attends to whom among the tokens of a forward pass.

    Args:
        sees: [L, L], whether a query (row) sees a key (column).
        is_clean: whether a key is a clean token.
        columns: label and colour of each token.
        blocks: name of each run of BLOCK_SIZE tokens.
        parts: first token, end and name of each part.
        note: the line below the picture.
    """
    num = len(columns)
    figure, axes = canvas(0.3 * num + 2.4, 0.3 * num + 2.0)
    axes.set_xlim(-4.6, num + 0.4)
    axes.set_ylim(num + 3.2, -4.4)
    for query in range(num):
        for key in range(num):
            own = SEES_CLEAN if is_clean[key] else SEES_OWN
            cell(axes, key, query, own if sees[query, key] else HIDDEN)
        label, colour = columns[query]
        cell(axes, query, -1.15, colour, label, edge="#bbbbbb", size=8.5)
        cell(axes, -1.15, query, colour, label, edge="#bbbbbb", size=8.5)
    edges = {0, *(end for _, end, _ in parts)}
    for edge in range(0, num + 1, BLOCK_SIZE):
        heavy = edge in edges
        style = {"color": INK if heavy else "#8a8a8a", "linewidth": 1.4 if heavy else 0.7}
        axes.plot([edge, edge], [-1.15, num], **style)
        axes.plot([-1.15, num], [edge, edge], **style)
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    for number, name in enumerate(blocks):
        at, soft = BLOCK_SIZE * (number + 0.5), {"fontsize": 9, "color": SOFT, **centred}
        axes.text(at, -1.65, name, **soft)
        axes.text(-1.65, at, name, rotation=90, **soft)
    for start, end, name in parts:
        middle, bold = (start + end) / 2, {"fontsize": 11.5, "fontweight": "bold", "color": INK}
        axes.text(middle, -2.6, name, **bold, **centred)
        axes.text(-2.6, middle, name, rotation=90, **bold, **centred)
    soft = {"fontsize": 10.5, "color": SOFT, **centred}
    axes.text(num / 2, -3.7, "key: the token that is seen", **soft)
    axes.text(-3.6, num / 2, "query: the token that sees", rotation=90, **soft)
    legend = (
        (SEES_CLEAN, "sees a clean token"),
        (SEES_OWN, "sees a token of its own noised block"),
        (HIDDEN, "does not see it"),
    )
    for x, (colour, text) in zip((0, 7.2, 18.2), legend, strict=True):
        cell(axes, x, num + 0.7, colour, edge="#bbbbbb")
        axes.text(x + 1.35, num + 1.22, text, va="center", fontsize=10, color=INK)
    axes.text(0, num + 2.5, note, va="center", fontsize=10, color=SOFT)
    return figure


def layout_picture() -> Figure:
    """Who attends to whom in the training layout [x_0 || x_t] of one sequence."""
    layout = BlockLayout(BLOCK_SIZE)
    length = torch.tensor([PROMPT + RESPONSE])
    grid = layout.training(torch.tensor([PROMPT]), length, num_views=1)
    position, stream = grid.position[0].tolist(), grid.stream[0].tolist()
    columns = []
    for place in position:
        kind = "p" if place < PROMPT else "r"
        label = f"{kind}{place}" if place < PROMPT + RESPONSE else "fill"
        columns.append((label, PROMPT_COLOUR if kind == "p" else "#fefefe"))
    num, num_clean = len(position), stream.count(CLEAN)
    return attention_picture(
        may_attend(grid[:, :, None], grid[:, None, :])[0],
        [own == CLEAN for own in stream],
        columns,
        [f"block {start // BLOCK_SIZE}" for start in position[::BLOCK_SIZE]],
        [(0, num_clean, "x_0, clean"), (num_clean, num, "x_t, noised")],
        f"Block size {BLOCK_SIZE}, {PROMPT} prompt tokens (p, grey), "
        f"{RESPONSE} response tokens (r), filled up to a whole block.",
    )


def pass_picture() -> Figure:
    """Who attends to whom in a pass that verifies a whole drafted block, decoded left to right."""
    first = BLOCK_SIZE  # The block before it is the prompt's, and stored.
    states = [(first, CLEAN, BLOCK_SIZE)]
    states += [(first, number, number) for number in range(1, BLOCK_SIZE)]
    states += [(first + BLOCK_SIZE, BLOCK_SIZE, 0)]
    columns = [(f"p{place}", PROMPT_COLOUR) for place in range(first)]
    position, stream = [*range(first)], [CLEAN] * first
    for start, own, num_known in states:
        position += range(start, start + BLOCK_SIZE)
        stream += [own] * BLOCK_SIZE
        columns += [
            (f"r{start + place}" if place < num_known else "M", "#fefefe")
            for place in range(BLOCK_SIZE)
        ]
    layout = BlockLayout(BLOCK_SIZE)
    grid = layout.coordinates(torch.tensor([position]), torch.tensor([stream]))
    parts = ("stored", "the draft", "its states x_1, x_2, x_3", "next x_0")
    ends = (first, 2 * first, 5 * first, 6 * first)
    return attention_picture(
        may_attend(grid[:, :, None], grid[:, None, :])[0],
        [own == CLEAN for own in stream],
        columns,
        ["block 0", *["block 1"] * BLOCK_SIZE, "block 2"],
        [*zip((0, *ends), ends, parts, strict=False)],
        "M: mask. The step to x_1 is verified; each state verifies the draft's next step.",
    )


def decoded(lm: LanguageModel) -> Trajectory:
    """The response of the model to one problem, decoded dynamically."""
    config = t3d.DecodingConfig(
        block_size=BLOCK_SIZE,
        denoising_steps=BLOCK_SIZE,
        remasking="low_confidence_dynamic",
        confidence_threshold=0.9,
        max_new_tokens=96,
    )
    example = t3d.get_task("mini_gsm").examples("test", PROBLEM + 1)[PROBLEM]
    [prompt] = encode_prompts(lm, [example], config)
    [completion] = t3d.make_decoder(lm, config, batch_size=1).decode([t3d.Request(prompt)])
    return record(example, prompt, completion, config)


def shown(lm: LanguageModel, ids: Sequence[int]) -> list[str]:
    """A text for the cell of each token, without leading blanks and the signs of control tokens."""
    texts = [lm.text([token]).strip(" <|>").replace("\n", "↵") for token in ids]
    return ["mask" if i == lm.mask_token_id else text for i, text in zip(ids, texts, strict=True)]


def states_picture(lm: LanguageModel) -> Figure:
    """A response x_0, the step map of its tokens, and a noised copy x_t that training draws."""
    trajectory = decoded(lm)
    layout = BlockLayout(BLOCK_SIZE)
    batch = TrajectoryBatch.collate(training_rows([trajectory]), lm.pad_token_id)
    vocabulary = Vocabulary.of(lm)
    noiser = TrajectoryState(levels=(0.75, 0.5, 0.25), level_power=0.0)
    [view] = noiser(NoiserInput(batch, layout, torch.tensor([3]), vocabulary, 0.0))
    prompt = len(trajectory.prompt_ids)
    start = layout.floor(prompt)
    steps = [None] * (prompt - start) + list(trajectory.step_map)
    clean = shown(lm, batch.input_ids[0, start:].tolist())
    noised = shown(lm, view.xt[0, start:].tolist())
    hidden = view.masked[0, start:].tolist()
    width = 16
    num_lines = -(-len(clean) // width)
    figure, axes = canvas(12.4, 1.0 + 2.1 * num_lines)
    axes.set_xlim(-1.9, width + 0.2)
    axes.set_ylim(4.4 * num_lines + 1.3, -0.5)
    for number, (token, step, copy, mask) in enumerate(
        zip(clean, steps, noised, hidden, strict=True)
    ):
        line, x = divmod(number, width)
        y = 4.4 * line
        colour = PROMPT_COLOUR if step is None else STEPS[step]
        cell(axes, x, y, colour, token, size=9.5 if len(token) < 9 else 8)
        axes.text(
            x + 0.5,
            y + 1.5,
            "" if step is None else str(step),
            ha="center",
            va="center",
            fontsize=10.5,
            color=INK,
        )
        cell(
            axes,
            x,
            y + 2,
            MASKED if mask else colour,
            copy,
            edge="#bbbbbb" if mask else "white",
            size=9.5 if len(copy) < 9 else 8,
        )
        if x % BLOCK_SIZE == 0:
            axes.plot([x, x], [y - 0.25, y + 3.25], color=INK, linewidth=1.2)
            name = f"block {(start + number) // BLOCK_SIZE}"
            axes.text(
                x + BLOCK_SIZE / 2, y + 3.45, name, ha="center", va="center", fontsize=9, color=SOFT
            )
    for line in range(num_lines):
        axes.plot([width, width], [4.4 * line - 0.25, 4.4 * line + 3.25], color=INK, linewidth=1.2)
        for row, name in enumerate(("x_0", "step map", "x_t")):
            axes.text(
                -0.25,
                4.4 * line + row + 0.52,
                name,
                ha="right",
                va="center",
                fontsize=11,
                fontweight="bold",
                color=INK,
            )
    bottom = 4.4 * num_lines
    legend = [(PROMPT_COLOUR, "prompt")]
    legend += [(colour, f"committed in step {step}") for step, colour in enumerate(STEPS)]
    legend += [(MASKED, "masked")]
    for x, (colour, text) in zip((0, 1.9, 5.1, 8.3, 11.5, 14.6), legend, strict=True):
        axes.add_patch(
            Rectangle((x, bottom - 0.1), 0.35, 0.7, facecolor=colour, edgecolor="#bbbbbb")
        )
        axes.text(x + 0.47, bottom + 0.26, text, va="center", fontsize=9.5, color=INK)
    return figure


def collapse_picture(lm: LanguageModel) -> Figure:
    """What the teacher predicts for a masked block: each position alone, and in four passes."""
    problem, block = COLLAPSE
    config = t3d.DecodingConfig(block_size=BLOCK_SIZE, denoising_steps=4, max_new_tokens=96)
    example = t3d.get_task("mini_gsm").examples("test", problem + 1)[problem]
    [prompt] = encode_prompts(lm, [example], config)
    [completion] = t3d.make_decoder(lm, config, batch_size=1).decode([t3d.Request(prompt)])
    ids, start = [*prompt, *completion.response_ids], BLOCK_SIZE * block
    masked = torch.tensor([ids[:start] + [lm.mask_token_id] * BLOCK_SIZE])
    with torch.no_grad():
        likely = lm.model(masked).logits[0, start:].float().softmax(-1).topk(4)
    figure, axes = canvas(9.6, 4.6)
    axes.set_xlim(-2.6, 9.6)
    axes.set_ylim(7.7, -1.9)
    before = lm.text(ids[start - 14 : start]).strip()
    axes.text(-2.4, -1.4, f"... {before}  [mask] [mask] [mask] [mask]", fontsize=10.5, color=INK)
    rows = [(0.0, "each position\nby itself"), (5.1, "one pass"), (6.4, "four passes")]
    for y, name in rows:
        style = {"fontsize": 10.5, "fontweight": "bold", "color": INK}
        axes.text(-2.4, y + 0.45, name, va="center", **style)
    lines = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
    for place, (candidates, shares) in enumerate(lines):
        x = 2.4 * place
        for row, (token, share) in enumerate(zip(shown(lm, candidates), shares, strict=True)):
            bar = Rectangle((x, row), 2.2 * share / 0.6, 0.85, facecolor=SEES_CLEAN, alpha=0.55)
            axes.add_patch(bar)
            style = {"va": "center", "fontsize": 10, "color": INK}
            axes.text(x + 0.08, row + 0.45, token, **style)
            axes.text(x + 2.15, row + 0.45, f"{share:.2f}", ha="right", **style)
        for y, token, colour in (
            (5.1, candidates[0], "#f3c6a5"),
            (6.4, ids[start + place], STEPS[3]),
        ):
            axes.add_patch(Rectangle((x, y), 2.2, 0.9, facecolor=colour))
            [text] = shown(lm, [token])
            axes.text(x + 1.1, y + 0.47, text, ha="center", va="center", fontsize=10.5)
    return figure


def main() -> None:
    save(layout_picture(), DOCS / "layout.png")
    save(pass_picture(), DOCS / "verified_pass.png")
    lm = t3d.from_pretrained("mini_teacher")
    save(states_picture(lm), DOCS / "states.png")
    save(collapse_picture(lm), DOCS / "collapse.png")


if __name__ == "__main__":
    main()
