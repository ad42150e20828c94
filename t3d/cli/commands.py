"""What each command does. Signatures and docstrings are the command line's options and help.

Modules here import nothing heavy at the top: help, a wrong call and `--print_config` need no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    home: str
    """Module of this package and function, as MODULE.FUNCTION."""
    positional: dict[str, Any] = field(default_factory=dict)
    """The parameter given without its name, as `add_argument` takes it."""
    takes_recipe: bool = False
    """Whether the first argument is a recipe."""
    recipe_optional: bool = False
    """Whether it may be left out; every key has a default that makes sense by itself."""
    resumable: bool = False
    """Whether the same call goes on where an interrupted one stopped."""

    @property
    def function(self) -> Callable[..., None]:
        module, _, name = self.home.rpartition(".")
        return getattr(import_module(f"t3d.cli.{module}"), name)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


_RUNS = {"dest": "runs", "type": Path, "metavar": "RUN", "nargs": "+"}
_MODELS = {"dest": "models", "type": str, "metavar": "MODEL", "nargs": "+"}
_NAMES = {"dest": "names", "type": str, "metavar": "NAME", "nargs": "+"}
_SOURCE = {"dest": "source", "type": str, "metavar": "SOURCE"}
_SOURCES = {"dest": "sources", "type": Path, "metavar": "STORE_OR_EVAL", "nargs": "+"}
_FILE = {"dest": "source", "type": Path, "metavar": "FILE"}
_QUESTION = {"dest": "question", "type": str | None, "metavar": "QUESTION", "nargs": "?"}

COMMANDS = {
    "run": Command("training.run_command", takes_recipe=True, resumable=True),
    "compare": Command("training.compare_command", takes_recipe=True, resumable=True),
    "convert": Command("checkpoints.convert_command", _SOURCE),
    "pretrain": Command(
        "training.pretrain_command", takes_recipe=True, recipe_optional=True, resumable=True
    ),
    "rollout": Command("training.rollout_command", resumable=True),
    "train": Command("training.train_command", resumable=True),
    "eval": Command("evaluating.eval_command", resumable=True),
    "frontier": Command("evaluating.frontier_command", _RUNS),
    "calibrate": Command("evaluating.calibrate_command", resumable=True),
    "lm-eval": Command("evaluating.lm_eval_command"),
    "analyze": Command("evaluating.analyze_command"),
    "report": Command("showing.report_command", _RUNS),
    "view": Command("showing.view_command", _SOURCES),
    "generate": Command("showing.generate_command", _QUESTION),
    "chat": Command("serving.chat_command", _MODELS),
    "serve": Command("serving.serve_command", _MODELS),
    "export": Command("exporting.export_command"),
    "import": Command("importing.import_command", _FILE),
    "export-rollouts": Command("importing.export_rollouts_command"),
    "bench decode": Command("benching.decode_command"),
    "bench train": Command("benching.train_command"),
    "data download": Command("data.download_command", _NAMES, resumable=True),
    "data convert": Command("data.convert_command", _FILE),
}
