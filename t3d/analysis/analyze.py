"""Measure on-policy risk and conditional total correlation of a teacher and its students.

Method and estimators: docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from t3d.report.sheets import Entry, Sheet

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
    """Total correlation of the model's own full-step decoder (T3D Thm. 4.5); the plug-in estimate
        unless it is exact."""
    total_correlation_high: Estimate
    """Leave-one-out estimate of the total correlation; equal to `total_correlation` where that is
        exact."""

    @property
    def columns(self) -> dict[str, Estimate]:
        """The estimates by their names in a table."""
        return {
            "on-policy risk": self.on_policy_risk,
            "marginal mismatch": self.marginal_mismatch,
            "total correlation": self.total_correlation,
            "total correlation, high": self.total_correlation_high,
        }

    def minus(self, other: Measurement, seed: int) -> Measurement:
        """Paired differences over the same states."""
        pairs = zip(self.columns.values(), other.columns.values(), strict=True)
        name = f"{self.model} - {other.model}"
        return Measurement(name, *(mine.minus(theirs, seed) for mine, theirs in pairs))


@dataclass(frozen=True)
class Analysis:
    """Measurements on the same states; `dataclasses.asdict` of it is JSON."""

    measurements: list[Measurement]
    """Measurements of the teacher as its own one-step student, then of the students."""
    differences: list[Measurement]
    """Differences of each student to the model before it in `measurements`."""
    num_states: int
    config: AnalysisConfig

    def sheet(self) -> Sheet:
        """The measurements as a table."""
        config = self.config
        # Exact values need no second estimate.
        names = list(self.measurements[0].columns)[: 3 if config.exact else 4]
        lines = []
        for measured in (*self.measurements, *self.differences):
            estimates = [measured.columns[name] for name in names]
            intervals = [f"[{e.ci95[0]:.3f}, {e.ci95[1]:.3f}]" for e in estimates]
            means = [f"{e.mean:.3f}" for e in estimates]
            lines.append([Entry(measured.model), *map(Entry, means, intervals)])
        how = "exact" if config.exact else f"{config.num_samples} completions a state"
        title = f"{self.num_states} states at noise level {config.noise_level:g}, {how}"
        note = "Nats a block, with 95 % bootstrap intervals over states."
        return Sheet(title, ["", *names], [lines], note, num_names=1)

    def save(self, directory: Path, provenance: dict[str, Any]) -> None:
        """Write analysis.json and analysis.md."""
        directory.mkdir(parents=True, exist_ok=True)
        document = {"provenance": provenance, "analysis": asdict(self)}
        write_json(directory / "analysis.json", document)
        write_bytes(directory / "analysis.md", self.sheet().markdown().encode())


def measure(
    models: Sequence[tuple[str, BlockDiffusionLM]],
    states: Sequence[State],
    config: AnalysisConfig,
    *,
    banned_token_ids: Sequence[int],
    progress: bool = False,
) -> Analysis:
    """Risk and total correlation of a teacher, `models[0]`, and its students at given states.

    Args:
        models: models by their names in tables; all have one vocabulary and lie on one device.
        banned_token_ids: tokens that no model generates, the mask token among them.

    Raises:
        ValueError: for fewer than two states, or if exact values are asked of a model or block that
            is too large to enumerate.
    """
    if len(states) < 2:
        raise ValueError(f"an interval needs at least 2 states, got {len(states)}")
    name, teacher = models[0]
    size, vocabulary = len(states[0].block), teacher.config.vocab_size
    if config.exact and (vocabulary > MAX_EXACT_VOCABULARY or size > MAX_EXACT_BLOCK):
        raise ValueError(
            f"{name}: exact values need a vocabulary of at most {MAX_EXACT_VOCABULARY} and blocks "
            f"of at most {MAX_EXACT_BLOCK} tokens, not {vocabulary} and {size}; set exact to false"
        )
    columns: list[list[Tensor]] = [[] for _ in models]
    with bar("analysis", len(states) * len(models), "state", show=progress) as count:
        for first in range(0, len(states), config.batch_size):
            part = states[first : first + config.batch_size]
            target: Marginals | None = None
            for column, (_, model) in zip(columns, models, strict=True):
                denoiser = Denoiser(
                    model, part, banned_token_ids=banned_token_ids, batch_size=config.batch_size
                )
                own, high = _decode(denoiser, config)
                # The first model is the teacher.
                target = target or own
                low = own.total_correlation()
                risk = target.on_policy_risk(denoiser.roots())
                mismatch = risk - target.total_correlation()
                column.append(torch.stack([risk, mismatch, low, high]).cpu())
                count.advance(len(part))
    measurements = [
        Measurement(name, *(Estimate.of(row, config.seed) for row in torch.cat(column, 1)))
        for (name, _), column in zip(models, columns, strict=True)
    ]
    pairs = zip(measurements[1:], measurements, strict=False)
    differences = [after.minus(before, config.seed) for after, before in pairs]
    return Analysis(measurements, differences, len(states), config)


def _decode(denoiser: Denoiser, config: AnalysisConfig) -> tuple[Marginals, Tensor]:
    """Marginals of the full-step decoder, and the upper estimate of its total correlation, [N]."""
    if config.exact:
        marginals = exact_marginals(denoiser)
        return marginals, marginals.total_correlation()
    paths = sample_paths(denoiser, config.num_samples)
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
    states = select_states(
        trajectories,
        num_states=config.num_states,
        noise_level=config.noise_level,
        seed=config.seed,
    )
    models = [(lm.name, lm.model) for lm in (teacher, *students)]
    banned = teacher.banned_token_ids
    return measure(models, states, config, banned_token_ids=banned, progress=progress)
