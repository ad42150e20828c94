"""Methods: a name for a data source, a noiser, an objective and a reference schedule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from t3d.noising import Noiser, RandomMask, TrajectoryState
from t3d.objectives import CrossEntropy, Nelbo, Objective, TrajectoryDDO

T = TypeVar("T")


@dataclass(frozen=True)
class Method:
    """What distinguishes one way of training from another; everything else is shared."""

    data: Literal["labelled", "trajectories"]
    noiser: Noiser
    objective: Objective
    reference_every: int | None = None
    """Optimizer steps of a round, after which the reference becomes a copy of the student."""

    def __post_init__(self) -> None:
        if self.objective.needs_reference != (self.reference_every is not None):
            raise ValueError(
                f"{type(self.objective).__name__} "
                f"{'needs' if self.objective.needs_reference else 'has no'} reference model: "
                f"reference_every={self.reference_every}"
            )
        if self.reference_every is not None and self.reference_every < 1:
            raise ValueError(f"reference_every must be at least 1, got {self.reference_every}")


METHODS: dict[str, Method] = {
    "pretrain": Method("labelled", RandomMask(), Nelbo()),
    "naive_td": Method("trajectories", TrajectoryState(), CrossEntropy()),
    # The published hyperparameters.
    "t3d": Method(
        "trajectories", TrajectoryState(random_share=0.1), TrajectoryDDO(), reference_every=10
    ),
}


def build_method(
    name: str,
    *,
    noiser: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    reference_every: int | None = None,
) -> Method:
    """A method of the table with some of its settings replaced.

    Raises:
        ValueError: for an unknown method or setting.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    base = METHODS[name]
    return dataclasses.replace(
        base,
        noiser=_replace(base.noiser, noiser or {}, f"method {name}: noiser"),
        objective=_replace(base.objective, objective or {}, f"method {name}: objective"),
        reference_every=base.reference_every if reference_every is None else reference_every,
    )


def _replace(value: T, settings: dict[str, Any], where: str) -> T:
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    names = {f.name for f in dataclasses.fields(value)} - {"needs_reference"}
    unknown = sorted(set(settings) - names)
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(names)) or 'none'}"
        )
    listed = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    try:
        return dataclasses.replace(value, **listed)
    except TypeError as error:
        raise ValueError(f"{where}: a setting has the wrong type: {error}") from None
