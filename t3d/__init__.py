"""Few-step decoding for block-diffusion language models by trajectory self-distillation.

The names below are imported when they are first used: `import t3d` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t3d.core.store import TrajectoryStore
    from t3d.core.trajectory import training_rows
    from t3d.decoding.build import generate, make_decoder
    from t3d.decoding.config import DecodingConfig, RolloutConfig
    from t3d.decoding.request import Request
    from t3d.decoding.rollout import rollout
    from t3d.evaluation.evaluate import evaluate
    from t3d.experiment.recipe import CompareConfig, RunConfig
    from t3d.experiment.run import compare, run
    from t3d.models.loading import LanguageModel, from_pretrained
    from t3d.tasks import get_task
    from t3d.training.config import MethodConfig, TrainingConfig
    from t3d.training.distill import distill

__version__ = "0.1.0"

__all__ = [
    "CompareConfig",
    "DecodingConfig",
    "LanguageModel",
    "MethodConfig",
    "Request",
    "RolloutConfig",
    "RunConfig",
    "TrainingConfig",
    "TrajectoryStore",
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "from_pretrained",
    "generate",
    "get_task",
    "make_decoder",
    "rollout",
    "run",
    "training_rows",
]

_HOME = {
    "CompareConfig": "experiment.recipe",
    "compare": "experiment.run",
    "rollout": "decoding.rollout",
    "DecodingConfig": "decoding.config",
    "LanguageModel": "models.loading",
    "MethodConfig": "training.config",
    "Request": "decoding.request",
    "RolloutConfig": "decoding.config",
    "RunConfig": "experiment.recipe",
    "TrainingConfig": "training.config",
    "TrajectoryStore": "core.store",
    "distill": "training.distill",
    "evaluate": "evaluation.evaluate",
    "from_pretrained": "models.loading",
    "generate": "decoding.build",
    "get_task": "tasks",
    "make_decoder": "decoding.build",
    "run": "experiment.run",
    "training_rows": "core.trajectory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 't3d' has no attribute {name!r}")
    value = getattr(import_module(f"t3d.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
