"""Methods: a name for a data source, a noiser, an objective and their schedules."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from t3d.noising import (
    ComplementaryMask,
    ComplementaryState,
    Noiser,
    RandomMask,
    StatePair,
    TrajectoryState,
    TrajectorySteps,
    UpstreamTrace,
)
from t3d.objectives import (
    CertaintyForcing,
    Consistency,
    CrossEntropy,
    GroupAdvantage,
    Nelbo,
    Objective,
    PolicyGradient,
    TrajectoryDDO,
)
from t3d.training.config import MethodConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """The parts of training that differ between methods; everything else is shared."""

    data: Literal["labelled", "trajectories"]
    noiser: Noiser
    objective: Objective
    reference_every: int | None = None
    """Number of optimizer steps of a reference round, which ends with a new copy of the student."""
    rounds: int = 1
    """Number of times that trajectories are made: first by the teacher, then by the student so
        far."""
    decay: Literal["halving", "linear", "none"] = "halving"
    """Shape in which the learning rate falls from round to round; linear ends above 0. With none it
        is constant within a round, too."""
    verify: bool = False
    """Whether the teacher's trajectory stands in for a student's that ends with another answer."""
    decoding: dict[str, Any] = field(default_factory=dict)
    """Decoding settings of the recipe that are replaced where the method's trajectories are
        made."""
    student_decoding: dict[str, Any] = field(default_factory=dict)
    """Decoding settings that are replaced further for the student's own trajectories: those of the
        rounds after the first, or of all where it starts from another student."""
    block_schedule: Literal["random", "growing"] = "random"
    """Whether the training block sizes come at random or in order of size."""
    fresh_noise: bool = True
    """Whether noise is drawn at every visit of a sequence, or once for all."""
    advantage: GroupAdvantage | None = None
    """What the student's own trajectories are rewarded for. Every round, the first one too, then
        trains on them, at `student_decoding` and its block size."""
    papers: tuple[str, ...] = ()
    """Papers that the method is taken from, as "NAME, arXiv:NUMBER"; model cards cite them."""

    def round_rate(self, number: int) -> float:
        """The factor of a round's learning rate; rounds count from 0."""
        rates = {"halving": 0.5**number, "linear": 1 - number / self.rounds, "none": 1.0}
        return rates[self.decay]

    def __post_init__(self) -> None:
        if self.objective.needs_reference != (self.reference_every is not None):
            raise ValueError(
                f"{type(self.objective).__name__} "
                f"{'needs' if self.objective.needs_reference else 'has no'} reference model: "
                f"reference_every={self.reference_every}"
            )
        if isinstance(self.objective, PolicyGradient) != (self.advantage is not None):
            raise ValueError("advantage: rewards and a policy gradient go together")
        if self.advantage is not None:
            if self.verify:
                raise ValueError("verify: no teacher's trajectory has the student's probabilities")
            return
        if self.rounds == 1 and (self.verify or self.student_decoding):
            key = "verify" if self.verify else "student_decoding"
            raise ValueError(f"{key}: only a second round has trajectories of a student")
        if self.data == "labelled" and (self.rounds > 1 or self.decoding):
            key = "rounds" if self.rounds > 1 else "decoding"
            raise ValueError(f"{key}: labelled answers are not decoded; drop the key")


_DYNAMIC = {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.9}


def _reinforcement(
    objective: PolicyGradient,
    advantage: GroupAdvantage,
    decoding: dict[str, Any],
    papers: tuple[str, ...],
) -> Method:
    """A method of reinforcement, whose rollouts are at temperature 1."""
    return Method(
        "labelled" if advantage.answers == "labels" else "trajectories",
        TrajectorySteps(),
        objective,
        rounds=80,
        decay="none",
        student_decoding={"temperature": 1.0, **decoding},
        advantage=advantage,
        papers=papers,
    )


_MDLM, _BD3LM = "MDLM, arXiv:2406.07524", "BD3LM, arXiv:2503.09573"
_REDI, _DPARALLEL = "ReDi, arXiv:2507.15897", "dParallel, arXiv:2509.26488"
_T3D, _LIGHTNING = "T3D, arXiv:2602.12262", "LightningRL, arXiv:2603.13319"
METHODS: dict[str, Method] = {
    "sft": Method("labelled", RandomMask(), Nelbo(), papers=(_MDLM, _BD3LM)),
    "redi": Method("trajectories", RandomMask(), CrossEntropy(), rounds=3, papers=(_REDI,)),
    "redi_coupled": Method(
        "trajectories",
        RandomMask(),
        CrossEntropy(),
        rounds=3,
        decoding={"random_share": 0.1},
        papers=(_REDI,),
    ),
    "dparallel": Method(
        "trajectories", ComplementaryMask(), CertaintyForcing(), papers=(_DPARALLEL,)
    ),
    "naive_td": Method("trajectories", TrajectoryState(), CrossEntropy(), papers=(_T3D,)),
    # The published hyperparameters.
    "t3d": Method(
        "trajectories",
        TrajectoryState(random_share=0.1),
        TrajectoryDDO(),
        reference_every=10,
        papers=(_T3D,),
    ),
    "d3llm": Method(
        "trajectories",
        ComplementaryState(),
        CertaintyForcing(scale=0.25),
        block_schedule="growing",
        papers=("d3LLM, arXiv:2601.07568", _DPARALLEL),
    ),
    "cdlm": Method("trajectories", StatePair(), Consistency(), papers=("CDLM, arXiv:2511.19269",)),
    # Rectified trajectory distillation, ours: docs/papers.md.
    "rtd": Method(
        "trajectories",
        RandomMask(),
        CrossEntropy(),
        rounds=4,
        decay="linear",
        verify=True,
        student_decoding={"denoising_steps": 2},
        papers=(_REDI,),
    ),
    # Reinforcement: docs/reinforcement.md.
    "tracerl": _reinforcement(
        PolicyGradient(),
        GroupAdvantage(speed_weight=0.0, across=False),
        _DYNAMIC,
        ("TraceRL, arXiv:2509.06949",),
    ),
    "lightningrl": _reinforcement(
        PolicyGradient(nll_weight=0.1), GroupAdvantage(), _DYNAMIC, (_LIGHTNING,)
    ),
    "rtd_rl": _reinforcement(
        PolicyGradient(),
        GroupAdvantage(group_size=8, answers="teacher", speed_weight=0.0),
        {"denoising_steps": 1},
        (_REDI, _LIGHTNING),
    ),
}


def build_method(config: MethodConfig) -> Method:
    """A method of the table with some of its settings replaced.

    With compat="upstream" it trains as the authors' released code does: the noiser is
    UpstreamTrace, which has path_k_steps beside the other settings, and noise is drawn once for
    all epochs.

    Raises:
        ValueError: for an unknown method or setting, or a value that does not fit.
    """
    where = f"method {config.method}"
    if config.method not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"unknown method {config.method!r}; choose one of {known}")
    base = METHODS[config.method]
    if config.compat is not None:
        if config.compat != "upstream" or not isinstance(base.noiser, TrajectoryState):
            raise ValueError(
                f"{where}: compat={config.compat!r} is unknown; it may be upstream, for naive_td "
                "and t3d"
            )
        noiser = UpstreamTrace(**dataclasses.asdict(base.noiser))
        base = dataclasses.replace(base, noiser=noiser, fresh_noise=False)
    changed: dict[str, Any] = {
        "noiser": _replace(base.noiser, config.noiser, f"{where}: noiser"),
        "objective": _replace(base.objective, config.objective, f"{where}: objective"),
        "decoding": base.decoding | config.decoding,
        "student_decoding": base.student_decoding | config.student_decoding,
    }
    if config.advantage:
        if base.advantage is None:
            raise ValueError(f"{where}: advantage: only reinforcement has rewards; drop the key")
        changed["advantage"] = _replace(base.advantage, config.advantage, f"{where}: advantage")
    for name in ("reference_every", "rounds", "verify"):
        if (value := getattr(config, name)) is not None:
            changed[name] = value
    try:
        return dataclasses.replace(base, **changed)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _replace(value: T, settings: dict[str, Any], where: str) -> T:
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    names = {f.name for f in dataclasses.fields(value)}
    unknown = sorted(set(settings) - names)
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(names)) or 'none'}"
        )
    listed = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    for key, setting in listed.items():
        default = getattr(value, key)
        # An int is accepted for a float; all other types must match.
        kinds = (int, float) if isinstance(default, float) else type(default)
        fits = isinstance(setting, kinds) and isinstance(setting, bool) == isinstance(default, bool)
        if isinstance(setting, tuple):
            fits = fits and all(type(item) in (int, float) for item in setting)
        if not fits:
            raise ValueError(
                f"{where}: {key} has the wrong type: {settings[key]!r}; the default is {default!r}"
            )
    try:
        return dataclasses.replace(value, **listed)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
