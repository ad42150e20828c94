from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from t3d.noising import TrajectoryState, UpstreamTrace
from t3d.objectives import CrossEntropy, TrajectoryDDO
from t3d.training.config import MethodConfig
from t3d.training.methods import METHODS, Method, build_method


def test_t3d_has_the_published_hyperparameters():
    method = build_method(MethodConfig("t3d"))
    noiser, objective = method.noiser, method.objective
    assert isinstance(noiser, TrajectoryState)
    assert noiser.levels == (1.0, 0.75, 0.5, 0.25)
    assert (noiser.level_power, noiser.random_share, noiser.random_in) == (8, 0.1, "all")
    assert isinstance(objective, TrajectoryDDO)
    assert (objective.alpha, objective.beta, objective.path_weight) == (0.5, 0.1, 0.2)
    assert objective.fake == "argmax"
    assert method.reference_every == 10


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_built_from_its_name(name: str):
    method = build_method(MethodConfig(name))
    assert method == METHODS[name]
    assert (method.reference_every is not None) == method.objective.needs_reference


def test_the_table_names_every_method_of_the_comparison():
    assert set(METHODS) == {
        "sft", "redi", "redi_coupled", "dparallel", "naive_td", "t3d", "d3llm", "cdlm", "rtd",
        "tracerl", "lightningrl", "rtd_rl",
    }  # fmt: skip
    labelled = {"sft", "tracerl", "lightningrl"}
    rewarded = {"tracerl", "lightningrl", "rtd_rl"}
    assert {name for name, method in METHODS.items() if method.data == "labelled"} == labelled
    assert {name for name, method in METHODS.items() if method.rounds > 1} == rewarded | {
        "redi",
        "redi_coupled",
        "rtd",
    }
    assert {name for name, method in METHODS.items() if method.advantage} == rewarded
    assert {n for n, m in METHODS.items() if m.objective.needs_teacher} == rewarded | {"cdlm"}


@pytest.mark.parametrize("name", ["naive_td", "t3d"])
def test_upstreams_compatibility_is_one_switch(name: str):
    """It changes the noiser's class, keeping its settings, and freezes the noise."""
    method = build_method(MethodConfig(name, noiser={"level_power": 2}, compat="upstream"))
    expected = build_method(MethodConfig(name, noiser={"level_power": 2}))
    assert isinstance(method.noiser, UpstreamTrace)
    settings = dataclasses.asdict(expected.noiser)  # type: ignore[call-overload]
    assert dataclasses.asdict(method.noiser) == settings | {"path_k_steps": 4}
    assert not method.fresh_noise
    assert dataclasses.replace(method, noiser=expected.noiser, fresh_noise=True) == expected


def test_naive_td_is_cross_entropy_on_trajectory_states():
    papers = ("T3D, arXiv:2602.12262",)
    expected = Method("trajectories", TrajectoryState(), CrossEntropy(), papers=papers)
    assert METHODS["naive_td"] == expected


def test_settings_replace_those_of_the_table_and_leave_it_alone():
    method = build_method(
        MethodConfig(
            "t3d",
            noiser={"levels": [1.0, 0.5], "random_share": 0.2},
            objective={"fake": "exact"},
            reference_every=3,
        )
    )
    assert method.noiser == TrajectoryState(levels=(1.0, 0.5), random_share=0.2)
    assert method.objective == TrajectoryDDO(fake="exact")
    assert method.reference_every == 3
    assert METHODS["t3d"].reference_every == 10


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("t4d", {}, "unknown method 't4d'; choose one of sft, redi"),
        ("t3d", {"noiser": {"levles": [1]}}, "method t3d: noiser: unknown key 'levles'; known are"),
        ("naive_td", {"objective": {"beta": 1}}, "method naive_td: objective: unknown key 'beta'"),
        ("t3d", {"objective": {"needs_reference": False}}, "unknown key 'needs_reference'"),
        ("t3d", {"noiser": {"random_share": 2}}, "random_share must lie in"),
        ("t3d", {"objective": {"fake": "max"}}, "fake must be one of"),
        ("t3d", {"reference_every": -1}, "reference_every must be at least 1"),
        ("redi", {"rounds": 0}, "method redi: rounds must be at least 1, got 0"),
        (
            "rtd",
            {"rounds": 1},
            "method rtd: verify: only a second round has",
        ),
        ("t3d", {"student_decoding": {"top_k": 1}}, "method t3d: student_decoding: only a second"),
        ("sft", {"decoding": {"random_share": 1}}, "method sft: decoding: labelled answers are"),
        ("dparallel", {"compat": "upstream"}, "method dparallel: compat='upstream' is unknown"),
        ("t3d", {"compat": "dllm"}, "method t3d: compat='dllm' is unknown"),
        ("t3d", {"objective": {"beta": "big"}}, "t3d: objective: beta has the wrong type: 'big'"),
        ("t3d", {"objective": {"fake": True}}, "t3d: objective: fake has the wrong type: True"),
        ("t3d", {"noiser": {"num_views": 1.5}}, "t3d: noiser: num_views has the wrong type: 1.5"),
        ("t3d", {"noiser": {"levels": ["x"]}}, r"levels has the wrong type: \['x'\]"),
        ("sft", {"noiser": {"weighting": "1/t"}}, "method sft: noiser: weighting must be one of"),
        ("dparallel", {"noiser": {"share": 1}}, "method dparallel: noiser: share must lie in"),
        ("d3llm", {"noiser": {"last_level": 2}}, "method d3llm: noiser: last_level must lie in"),
        ("naive_td", {"reference_every": 5}, "CrossEntropy has no reference model"),
    ],
)
def test_mistakes_are_named(name: str, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build_method(MethodConfig(name, **settings))


def test_an_objective_that_needs_a_reference_needs_rounds():
    with pytest.raises(ValueError, match="TrajectoryDDO needs reference model"):
        Method("trajectories", TrajectoryState(), TrajectoryDDO())
