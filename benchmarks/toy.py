"""A world small enough for exact values: Prop. 4.3 and Thm. 4.5 of T3D as measured numbers.

Prompts of one block name a start and a direction; the answer is a run of digits from there,
forwards or backwards, shifted as a whole by a hidden amount: its four tokens are strongly
dependent. A tiny SDAR learns it; two students are distilled from its own samples with equal
budgets, one on the states that the teacher visited, one on random masks.

`python -m benchmarks.toy` prints the tables of docs/theory.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from t3d.analysis.analyze import Analysis, measure
from t3d.analysis.config import AnalysisConfig
from t3d.analysis.full_steps import sample_paths
from t3d.analysis.states import Denoiser, State, select_states
from t3d.core.rng import derive_key
from t3d.core.trajectory import Trajectory
from t3d.models import BlockDiffusionLM
from t3d.report.sheets import render_markdown
from t3d.testing import tiny

BLOCK_SIZE = 4
NUM_DIGITS = 6
FORWARDS, BACKWARDS, MASK = NUM_DIGITS, NUM_DIGITS + 1, NUM_DIGITS + 2
BANNED = (FORWARDS, BACKWARDS, MASK)
"""Answers are digits only."""
_SHIFTS = (0, 1, 3)
_NOISE = 0.05
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Toy:
    """Models and states, ready to be measured."""

    models: list[tuple[str, BlockDiffusionLM]]
    """Teacher, the student of random masks, the student of visited states."""
    trajectories: list[Trajectory]


def prompts() -> list[list[int]]:
    """Every start and direction."""
    return [[start, way] * 2 for start in range(NUM_DIGITS) for way in (FORWARDS, BACKWARDS)]


def _answers(prompt: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an answer to each prompt, int64 [B, S] -> [B, S]."""
    shift = torch.tensor(_SHIFTS)[
        torch.randint(len(_SHIFTS), (len(prompt), 1), generator=generator)
    ]
    way = torch.where(prompt[:, 1:2] == FORWARDS, 1, -1)
    run = (prompt[:, :1] + shift + way * torch.arange(BLOCK_SIZE)) % NUM_DIGITS
    noise = torch.randint(NUM_DIGITS, run.shape, generator=generator)
    return torch.where(torch.rand(run.shape, generator=generator) < _NOISE, noise, run)


def _random_masks(num: int, generator: torch.Generator) -> Tensor:
    """k of a block's tokens, k uniform in 1..S, bool [num, S]."""
    rank = torch.rand((num, BLOCK_SIZE), generator=generator).argsort(1)
    return rank < torch.randint(1, BLOCK_SIZE + 1, (num, 1), generator=generator)


def _train(
    model: BlockDiffusionLM,
    batch: Callable[[], tuple[Tensor, Tensor, Tensor]],
    steps: int,
    learning_rate: float,
) -> BlockDiffusionLM:
    """Minimise the cross-entropy of masked tokens; `batch` gives prompt, x0 and mask [B, S]."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        prompt, x0, mask = batch()
        xt = x0.masked_fill(mask, MASK)
        logits = model(torch.cat([prompt, xt], 1)).logits[:, BLOCK_SIZE:]
        optimizer.zero_grad()
        cross_entropy(logits[mask], x0[mask]).backward()
        optimizer.step()
        schedule.step()
    return model


def _train_teacher(steps: int, generator: torch.Generator) -> BlockDiffusionLM:
    """On the toy's own answers and random masks."""
    every = torch.tensor(prompts())

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        prompt = every[torch.randint(len(every), (_BATCH_SIZE,), generator=generator)]
        return prompt, _answers(prompt, generator), _random_masks(_BATCH_SIZE, generator)

    shape = {"block_size": BLOCK_SIZE, "num_hidden_layers": 1, "initializer_range": 0.1}
    return _train(tiny(vocab_size=MASK + 1, **shape), batch, steps, 1e-2)


def _trajectories(teacher: BlockDiffusionLM, num_samples: int) -> list[Trajectory]:
    """Full-step samples of the teacher at temperature 1, `num_samples` a prompt."""
    nothing = [MASK] * BLOCK_SIZE
    states = [
        State(prompt, nothing, [True] * BLOCK_SIZE, derive_key(0, *prompt)) for prompt in prompts()
    ]
    paths = sample_paths(
        Denoiser(teacher, states, banned_token_ids=BANNED, batch_size=256), num_samples
    )
    return [
        Trajectory(
            prompt_id=f"{n}/{k}",
            prompt_ids=state.prefix,
            response_ids=paths.ids[n, k].tolist(),
            initial_ids=nothing,
            step_map=paths.step[n, k].tolist(),
            log_probs=paths.log_probs[n, k].tolist(),
            num_response_tokens=BLOCK_SIZE,
            finish_reason="length",
            block_size=BLOCK_SIZE,
        )
        for n, state in enumerate(states)
        for k in range(num_samples)
    ]


def _train_student(
    teacher: BlockDiffusionLM,
    trajectories: list[Trajectory],
    steps: int,
    generator: torch.Generator,
    *,
    visited: bool,
) -> BlockDiffusionLM:
    """A copy of the teacher, trained at visited states or at random masks of the same x0."""
    prompt = torch.tensor([t.prompt_ids for t in trajectories])
    x0 = torch.tensor([t.response_ids for t in trajectories])
    order = torch.tensor([t.step_map for t in trajectories])

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(x0), (_BATCH_SIZE,), generator=generator)
        mask = _random_masks(_BATCH_SIZE, generator)
        if visited:
            # As many tokens as at random, but those that were committed last.
            mask = order[rows] >= BLOCK_SIZE - mask.sum(1, keepdim=True)
        return prompt[rows], x0[rows], mask

    return _train(copy.deepcopy(teacher), batch, steps, 2e-3)


def build(
    *, seed: int = 0, teacher_steps: int = 150, student_steps: int = 150, num_samples: int = 512
) -> Toy:
    """Train all three models; some ten seconds."""
    generator = torch.Generator().manual_seed(seed)
    teacher = _train_teacher(teacher_steps, generator)
    trajectories = _trajectories(teacher, num_samples)
    models = [("teacher", teacher)]
    for name, visited in (("random masks", False), ("visited states", True)):
        own = torch.Generator().manual_seed(seed + 1)
        student = _train_student(teacher, trajectories, student_steps, own, visited=visited)
        models.append((name, student))
    return Toy(models, trajectories)


def analyze_toy(toy: Toy, *, exact: bool) -> Analysis:
    """The toy's measurements at visited states."""
    config = AnalysisConfig(num_states=32, exact=exact, batch_size=512)
    starts, *states = (
        select_states(
            toy.trajectories, num_states=config.num_states, noise_level=level, seed=config.seed
        )
        for level in (1.0, *config.noise_levels)
    )
    return measure(toy.models, starts, states, config, banned_token_ids=BANNED)


if __name__ == "__main__":
    print(render_markdown([analyze_toy(build(), exact=True).section()]))
