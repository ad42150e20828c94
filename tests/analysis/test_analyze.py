"""States from a store, two checkpoints, tables and bad input."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from t3d.analysis.analyze import analyze
from t3d.analysis.config import AnalysisConfig
from t3d.analysis.states import select_states
from t3d.core.store import TrajectoryStore
from t3d.core.trajectory import Trajectory
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.decoding.replay import visited_states
from t3d.decoding.rollout import rollout
from t3d.models import LanguageModel, from_pretrained, wrap
from t3d.report.sheets import render_markdown, render_terminal
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny


def trajectory(rng: random.Random, name: int, block_size: int = 4) -> Trajectory:
    """One to three blocks, any number of tokens a step, some of them random before."""
    prompt = [rng.randrange(20) for _ in range(rng.randint(1, 9))]
    num = block_size * rng.randint(1, 3) + -len(prompt) % block_size
    step_map: list[int] = []
    while len(step_map) < num:
        width = block_size - (len(prompt) + len(step_map)) % block_size
        drawn = [rng.randrange(block_size) for _ in range(width)]
        step_map += [sorted(set(drawn)).index(step) for step in drawn]
    return Trajectory(
        prompt_id=str(name),
        prompt_ids=prompt,
        response_ids=[rng.randrange(20) for _ in range(num)],
        initial_ids=[rng.choice([30, 30, 21]) for _ in range(num)],
        step_map=step_map,
        log_probs=[-1.0] * num,
        num_response_tokens=num,
        finish_reason="length",
        block_size=block_size,
    )


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.25, 0.5, 2 / 3, 0.75, 1.0]))
def test_states_are_visited_ones_of_the_noise_level(seed: int, level: float) -> None:
    rng = random.Random(seed)
    items = [trajectory(rng, name) for name in range(6)]
    chosen = select_states(items, num_states=4, noise_level=level, seed=seed)
    assert len(chosen) == len({state.key for state in chosen}) == 4
    for state in chosen:
        start = len(state.prefix)
        [source] = [
            t
            for t in items
            if (t.prompt_ids + t.response_ids)[:start] == state.prefix
            and (start, state.block) in visited_states(t)
        ]
        ids = source.prompt_ids + source.response_ids
        initial = source.prompt_ids + source.initial_ids
        # Visible tokens are final, masked ones as decoding began; both may look alike.
        for i, hidden in enumerate(state.masked):
            assert state.block[i] == (initial if hidden else ids)[start + i]
        response = 4 - max(0, len(source.prompt_ids) - start)
        assert sum(state.masked) >= level * response - 1e-9
        # One more step would leave too few.
        steps = ([-1] * len(source.prompt_ids) + source.step_map)[start : start + 4]
        now = min(s for s, hidden in zip(steps, state.masked, strict=True) if hidden)
        after = sum(s > now for s in steps)
        assert after < level * response - 1e-9 or after == 0
    # The same blocks at every level.
    begun = select_states(items, num_states=4, noise_level=1.0, seed=seed)
    assert [(s.key, s.prefix) for s in begun] == [(s.key, s.prefix) for s in chosen]
    rng.shuffle(items)
    assert select_states(items, num_states=4, noise_level=level, seed=seed) == chosen


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    return from_pretrained("mini_teacher")


@pytest.fixture(scope="module")
def recorded(teacher: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    path: Path = tmp_path_factory.mktemp("analysis") / "store"
    config = RolloutConfig(DecodingConfig(max_new_tokens=12))
    rollout(teacher, get_task("mini_gsm").examples("train", 5), path, config, progress=False)
    return TrajectoryStore.open(path).read()


def test_a_store_and_two_checkpoints(teacher: LanguageModel, recorded: list[Trajectory]) -> None:
    student = tiny(vocab_size=596, mask_token_id=teacher.mask_token_id, dtype=torch.float32)
    lm = wrap(student, teacher.tokenizer, "student")
    config = AnalysisConfig(num_states=4, num_samples=8, noise_levels=(1.0, 0.5))
    found = analyze(teacher, [lm], recorded, config, progress=False)
    assert found == analyze(teacher, [lm], recorded[::-1], config, progress=False)
    assert found.num_states == 4
    begun, half, mean = found.levels
    for rows in zip(begun.measurements, half.measurements, mean.measurements, strict=True):
        assert set(rows[0].state_correlation.values) == {0.0}
        for field in dataclasses.fields(rows[0])[1:]:
            a, b, c = (torch.tensor(getattr(row, field.name).values) for row in rows)
            assert torch.allclose((a + b) / 2, c)
    first, second = half.measurements
    [difference] = half.differences
    assert second.on_policy_risk.mean > first.on_policy_risk.mean > 0
    for a, b, c in zip(
        first.on_policy_risk.values,
        second.on_policy_risk.values,
        difference.on_policy_risk.values,
        strict=True,
    ):
        assert b - a == pytest.approx(c)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["num_states"] == 4
    # Every state is another trajectory's.
    more = analyze(teacher, [lm], recorded, AnalysisConfig(num_samples=2), progress=False)
    assert more.num_states == len(recorded)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_terminal([found.section()]))
    shown, written = console.export_text(), render_markdown([found.section()])
    estimates = (first.total_correlation, first.total_correlation_high)
    numbers = " to ".join(f"{estimate.mean:.3f}" for estimate in estimates)
    for text in (f"{first.on_policy_risk.mean:.3f}", numbers, "TC(x_t | x_T)", "mini_teacher"):
        assert text in shown
        assert text.replace("|", "\\|") in written
    rows = [line.replace("\\|", "") for line in written.splitlines() if line.startswith("|")]
    # Teacher, student and their difference, thrice.
    assert [row.count("|") for row in rows] == [6] * 3 * 5


def test_a_teacher_is_its_own_student(teacher: LanguageModel, recorded: list[Trajectory]) -> None:
    config = AnalysisConfig(num_states=3, num_samples=4)
    for level in analyze(teacher, [teacher], recorded, config, progress=False).levels:
        [row] = level.differences
        for estimate in (row.on_policy_risk, row.total_correlation, row.state_correlation):
            assert estimate.values == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_states": 1}, "num_states must be at least 2, got 1"),
        ({"num_samples": 1}, "num_samples must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"noise_levels": (0.5, 0.0)}, r"noise_levels must lie in \(0, 1\], got 0.0"),
        ({"noise_levels": (1.5,)}, r"noise_levels must lie in \(0, 1\], got 1.5"),
        (
            {"noise_levels": ()},
            r"noise_levels must name at least one level, and each once, got \[\]",
        ),
        ({"noise_levels": (1.0, 1)}, "noise_levels must name at least one level, and each once"),
    ],
)
def test_bad_settings(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        AnalysisConfig(**settings)


def test_bad_input(teacher: LanguageModel, recorded: list[Trajectory]) -> None:
    config = AnalysisConfig()
    with pytest.raises(ValueError, match="at least 2 trajectories, got 0.*t3d rollout"):
        analyze(teacher, [teacher], [], config)
    with pytest.raises(ValueError, match="mini_teacher: exact values.*at most 16.*not 596 and 4"):
        analyze(teacher, [teacher], recorded, AnalysisConfig(exact=True))
    tokenizer = train_tokenizer(["other words"], vocab_size=300)
    strange = tiny(vocab_size=596, mask_token_id=None)
    with pytest.raises(ValueError, match="strange: its vocabulary is not that of mini_teacher"):
        analyze(teacher, [wrap(strange, tokenizer, "strange")], recorded, config)
    wide = wrap(tiny(vocab_size=600, mask_token_id=595), teacher.tokenizer, "wide")
    with pytest.raises(ValueError, match="wide: its vocabulary is not that of mini_teacher"):
        analyze(teacher, [wide], recorded, config)
    foreign = dataclasses.replace(recorded[0], prompt_ids=[600])
    with pytest.raises(ValueError, match="token ids beyond the 596 of mini_teacher"):
        analyze(teacher, [teacher], [recorded[1], foreign], config)
