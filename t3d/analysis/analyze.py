"""Measure on-policy risk and conditional total correlation of a teacher and its students.

Method and estimators: docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t3d.analysis.config import AnalysisConfig
from t3d.analysis.estimators import Estimate, Marginals, leave_one_out
from t3d.analysis.full_steps import exact_marginals, sample_paths
from t3d.analysis.states import Denoiser, State, select_states
from t3d.core.files import write_bytes, write_json
from t3d.core.progress import bar
from t3d.core.trajectory import Trajectory
from t3d.models import BlockDiffusionLM, LanguageModel
from t3d.report.sheets import Entry, Section, Sheet, render_markdown

MAX_EXACT_VOCABULARY = 16
MAX_EXACT_BLOCK = 4


@dataclass(frozen=True)
class Measurement:
    """The measurements of one model, or the difference of two models'."""

    model: str
    on_policy_risk: Estimate
    """R_t of the model as a factorised one-step student; T3D Prop. 4.3, arXiv:2602.12262."""
    marginal_mismatch: Estimate
    """The risk less the teacher's total correlation: sum_i KL(p_phi^i || p_theta^i)."""
    total_correlation: Estimate
    """TC(x0 | x_t) of the model's own full-step decoder (T3D Thm. 4.5); the plug-in estimate
        unless it is exact."""
    total_correlation_high: Estimate
    """Leave-one-out estimate of the total correlation; equal to `total_correlation` where that is
        exact."""
    state_correlation: Estimate
    """TC(x_t | x_T) of the states that this decoder itself reaches from the fully masked block, as
        much masked as the measured ones; the plug-in estimate unless it is exact."""
    state_correlation_high: Estimate
    """Leave-one-out estimate of `state_correlation`."""

    def minus(self, other: Measurement, seed: int) -> Measurement:
        """Paired differences over the same states."""
        names = [field.name for field in fields(self)[1:]]
        pairs = [(getattr(self, name), getattr(other, name)) for name in names]
        name = f"{self.model} - {other.model}"
        return Measurement(name, *(mine.minus(theirs, seed) for mine, theirs in pairs))

    def row(self) -> list[Entry]:
        """The model and its numbers; low and high estimates, where they differ, in one entry."""
        row = [Entry(self.model)]
        for estimates in (
            [self.on_policy_risk],
            [self.marginal_mismatch],
            [self.total_correlation, self.total_correlation_high],
            [self.state_correlation, self.state_correlation_high],
        ):
            means = dict.fromkeys(f"{e.mean:z.3f}" for e in estimates)
            ends = [end for e in estimates for end in e.ci95]
            row.append(Entry(" to ".join(means), f"[{min(ends):z.3f}, {max(ends):z.3f}]"))
        return row


@dataclass(frozen=True)
class Level:
    """Measurements at one noise level, or their means over several."""

    noise_level: float | None
    """Masked share of the blocks, None of the means."""
    measurements: list[Measurement]
    """Measurements of the teacher as its own one-step student, then of the students."""
    differences: list[Measurement]
    """Differences of each student to the model before it in `measurements`."""

    def sheet(self) -> Sheet:
        """The measurements as a table."""
        level = self.noise_level
        title = "Mean over noise levels" if level is None else f"Noise level {level:g}"
        header = ["", "on-policy risk", "marginal mismatch", "total correlation", "TC(x_t | x_T)"]
        rows = [measured.row() for measured in (*self.measurements, *self.differences)]
        note = "Nats a block, with 95 % bootstrap intervals over states."
        return Sheet(title, header, [rows], note, num_names=1)


@dataclass(frozen=True)
class Analysis:
    """Measurements in the same blocks; `dataclasses.asdict` of it is JSON."""

    levels: list[Level]
    """Measurements at each noise level; of several levels the means over them follow."""
    num_states: int
    config: AnalysisConfig

    def section(self) -> Section:
        """A table a level, under a heading."""
        config = self.config
        how = f"{config.num_samples} completions a state, estimates of correlation low to high"
        title = f"{self.num_states} states, {'exact' if config.exact else how}"
        return title, [level.sheet() for level in self.levels]

    def save(self, directory: Path, provenance: dict[str, Any]) -> None:
        """Write analysis.json and analysis.md."""
        directory.mkdir(parents=True, exist_ok=True)
        document = {"provenance": provenance, "analysis": asdict(self)}
        write_json(directory / "analysis.json", document)
        write_bytes(directory / "analysis.md", render_markdown([self.section()]).encode())


def measure(
    models: Sequence[tuple[str, BlockDiffusionLM]],
    starts: Sequence[State],
    states: Sequence[Sequence[State]],
    config: AnalysisConfig,
    *,
    banned_token_ids: Sequence[int],
    progress: bool = False,
) -> Analysis:
    """Risk and total correlations of a teacher, `models[0]`, and its students at given states.

    Args:
        models: models by their names in tables; all have one vocabulary and lie on one device.
        starts: x_T, blocks before the first step.
        states: x_t, for each of `config.noise_levels` a state of every block.
        banned_token_ids: tokens that no model generates, the mask token among them.

    Raises:
        ValueError: for fewer than two states, or if exact values are asked of a model or block that
            is too large to enumerate.
    """
    if len(starts) < 2:
        raise ValueError(f"an interval needs at least 2 states, got {len(starts)}")
    name, teacher = models[0]
    size, vocabulary = len(starts[0].block), teacher.config.vocab_size
    if config.exact and (vocabulary > MAX_EXACT_VOCABULARY or size > MAX_EXACT_BLOCK):
        raise ValueError(
            f"{name}: exact values need a vocabulary of at most {MAX_EXACT_VOCABULARY} and blocks "
            f"of at most {MAX_EXACT_BLOCK} tokens, not {vocabulary} and {size}; set exact to false"
        )
    levels: dict[float | None, Tensor] = {}
    total = len(starts) * len(states) * len(models)
    with bar("analysis", total, "state", show=progress) as count:
        for noise_level, visited in zip(config.noise_levels, states, strict=True):
            columns: list[list[Tensor]] = [[] for _ in models]
            for first in range(0, len(starts), config.batch_size):
                part = slice(first, first + config.batch_size)
                target: Marginals | None = None
                for column, (_, model) in zip(columns, models, strict=True):
                    decoder = partial(
                        Denoiser,
                        model,
                        banned_token_ids=banned_token_ids,
                        batch_size=config.batch_size,
                    )
                    start, state = decoder(starts[part]), decoder(visited[part])
                    own, high = _decode(state, config)
                    reached, reached_high = _decode(start, config, state.masked.sum(1))
                    # The first model is the teacher.
                    target = target or own
                    low = own.total_correlation()
                    risk = target.on_policy_risk(state.roots())
                    mismatch = risk - target.total_correlation()
                    reached_low = reached.total_correlation()
                    row = torch.stack([risk, mismatch, low, high, reached_low, reached_high])
                    column.append(row.cpu())
                    count.advance(len(low))
            levels[noise_level] = torch.stack([torch.cat(column, 1) for column in columns])
    if len(levels) > 1:
        levels[None] = torch.stack(list(levels.values())).mean(0)
    measured = []
    for noise_level, values in levels.items():
        measurements = [
            Measurement(name, *(Estimate.of(row, config.seed) for row in rows))
            for (name, _), rows in zip(models, values, strict=True)
        ]
        pairs = zip(measurements[1:], measurements, strict=False)
        differences = [after.minus(before, config.seed) for after, before in pairs]
        measured.append(Level(noise_level, measurements, differences))
    return Analysis(measured, len(starts), config)


def _decode(
    denoiser: Denoiser, config: AnalysisConfig, left: Tensor | int = 0
) -> tuple[Marginals, Tensor]:
    """Marginals of the full-step decoder, and the upper estimate of its total correlation, [N]."""
    if config.exact:
        marginals = exact_marginals(denoiser, left)
        return marginals, marginals.total_correlation()
    paths = sample_paths(denoiser, config.num_samples, left)
    return paths.marginals, leave_one_out(paths.marginals, paths.ids, paths.log_probs)


def analyze(
    teacher: LanguageModel,
    students: Sequence[LanguageModel],
    trajectories: Sequence[Trajectory],
    config: AnalysisConfig,
    *,
    progress: bool = True,
) -> Analysis:
    """Compare students with their teacher on states of the teacher's trajectories.

    Raises:
        ValueError: for models or trajectories that do not belong together, too few
            trajectories, or exact values of a model that is too large for them.
    """
    if len(trajectories) < 2:
        raise ValueError(
            f"an analysis needs at least 2 trajectories, got {len(trajectories)}; "
            "make more with `t3d rollout`"
        )
    size = teacher.model.config.vocab_size
    vocabulary = teacher.tokenizer.get_vocab()
    for student in students:
        same = size == student.model.config.vocab_size
        if not same or vocabulary != student.tokenizer.get_vocab():
            raise ValueError(
                f"{student.name}: its vocabulary is not that of {teacher.name}; "
                "name a student that was distilled from this teacher"
            )
    for trajectory in trajectories:
        if max(trajectory.prompt_ids + trajectory.response_ids) >= size:
            raise ValueError(
                f"trajectory {trajectory.prompt_id!r} has token ids beyond the {size} of "
                f"{teacher.name}; name the model that made the trajectories as teacher"
            )
    starts, *states = (
        select_states(
            trajectories, num_states=config.num_states, noise_level=level, seed=config.seed
        )
        for level in (1.0, *config.noise_levels)
    )
    models = [(lm.name, lm.model) for lm in (teacher, *students)]
    banned = teacher.banned_token_ids
    return measure(models, starts, states, config, banned_token_ids=banned, progress=progress)
