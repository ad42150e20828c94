"""The command line: parse, call, print. What the commands do is in `t3d.commands`."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t3d import __version__

# Here and not in the docstrings alone, so that `t3d --help` imports no torch.
SUMMARIES = {
    "run": "Walk the whole route of a recipe: rollout, distill, evaluate, report.",
    "compare": "Train every method of a recipe with every seed, and compare them.",
    "convert": "Make a block-diffusion checkpoint of an autoregressive chat model.",
    "pretrain": "Train a small model from nothing, or adapt a checkpoint, such as a converted one.",
    "rollout": "Let a teacher decode prompts, and record every step in a trajectory store.",
    "train": "Distill a teacher's trajectories into a student.",
    "eval": "Measure accuracy and speed of one checkpoint under several decoding settings.",
    "frontier": "Accuracy against speed: every setting of one or more runs in one figure.",
    "calibrate": "Find the fastest setting that keeps accuracy, and make it the default.",
    "lm-eval": "Run generative tasks of lm-evaluation-harness on a checkpoint.",
    "analyze": "Measure on-policy risk and conditional total correlation on visited states.",
    "report": "Show the results of one or more runs together.",
    "generate": "Answer one question.",
    "export": "Write a checkpoint for transformers, SGLang and LMDeploy, or check such a folder.",
    "import": "Turn rollout JSON of T3D's authors, or of dLLM-RL, into a trajectory store.",
    "export-rollouts": "Turn a trajectory store into rollout JSON of T3D's authors or of dLLM-RL.",
    "bench decode": "Measure how fast a model decodes on this machine.",
    "bench train": "Measure how fast a method trains on this machine.",
    "data download": "Fetch benchmarks from the Hugging Face Hub, and check their content.",
    "data convert": "Turn a file in the format of T3D's authors into one that t3d reads.",
}
RECIPES = ("run", "compare", "pretrain")
"""Commands whose first argument is a recipe."""
RESUMABLE = (
    "run", "compare", "pretrain", "rollout", "train", "eval", "calibrate", "data download"
)  # fmt: skip
SWITCHES = ("dry_run", "smoke", "untie")
"""Options that need no value."""
POSITIONALS: dict[str, dict[str, Any]] = {
    "frontier": {"dest": "runs", "type": Path, "metavar": "RUN", "nargs": "+"},
    "report": {"dest": "runs", "type": Path, "metavar": "RUN", "nargs": "+"},
    "data download": {"dest": "names", "type": str, "metavar": "NAME", "nargs": "+"},
    "data convert": {"dest": "source", "type": Path, "metavar": "SOURCE"},
    "convert": {"dest": "source", "type": str, "metavar": "SOURCE"},
    "import": {"dest": "source", "type": Path, "metavar": "FILE"},
    "generate": {"dest": "question", "type": str, "metavar": "QUESTION"},
}

_CLASS = re.compile(r"<class\s+'(?:\w+\.)*(\w+)'>")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 for input that the command cannot use; 2 for a wrong call or recipe; 130 where
        the user stopped it.
    """
    if argv is None:
        _silence_libraries()
    name, arguments = _command(sys.argv[1:] if argv is None else argv)
    try:
        function, settings = parse(name, arguments)
        function(**settings)
    except argparse.ArgumentError as error:
        hint = f"`t3d {name} --help` lists what it takes"
        print(f"t3d {name}: error: {_sentence(str(error))}; {hint}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"t3d: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resume = "; run the same command again to resume" if name in RESUMABLE else ""
        print(f"\nt3d: stopped{resume}", file=sys.stderr)
        return 130
    return 0


def _silence_libraries() -> None:
    """Keep warnings and notes of libraries off the screen, here and in the processes started."""
    # Who asks Python for warnings, as tests do, gets them.
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ["PYTHONWARNINGS"] = "ignore"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"


def _command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name and its arguments; prints the overview itself."""
    width = max(map(len, SUMMARIES))
    commands = "\n".join(f"  {name:{width}}  {line}" for name, line in SUMMARIES.items())
    parser = argparse.ArgumentParser(
        prog="t3d",
        usage="t3d COMMAND ...",
        description="Few-step decoding for block-diffusion language models.\n\n"
        f"commands:\n{commands}\n\n"
        "Example: t3d run demo\n`t3d COMMAND --help` shows all options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"t3d {__version__}")
    parser.add_argument("command", choices=SUMMARIES, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    words = list(argv)
    if " ".join(words[:2]) in SUMMARIES:
        words[:2] = [" ".join(words[:2])]
    parsed = parser.parse_args(words)
    return parsed.command, parsed.arguments


def parse(name: str, arguments: Sequence[str]) -> tuple[Callable[..., None], dict[str, Any]]:
    """A command and what to call it with.

    Raises:
        argparse.ArgumentError: for a wrong call, or a wrong key or type in a recipe.
        ValueError: for a value that its dataclass refuses.
    """
    import jsonargparse
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    from t3d.commands import COMMANDS

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Keeps the examples' lines, and names types as they are written."""

        def format_help(self) -> str:
            return _CLASS.sub(r"\1", super().format_help())

    function = COMMANDS[name]
    positional = POSITIONALS.get(name, {})
    first = "RECIPE " if name in RECIPES else ""
    last = f" {positional['metavar']}" if positional else ""
    parser = jsonargparse.ArgumentParser(
        prog=f"t3d {name}",
        usage=f"t3d {name} {first}[--KEY VALUE ...]{last}",
        description=(inspect.getdoc(function) or "").split("\n\nArgs:")[0],
        formatter_class=Formatter,
        exit_on_error=False,
    )
    what = "RECIPE under another name" if first else "YAML file with any of the keys below"
    parser.add_argument("--config", action="config", help=f"{what}; options override it.")
    skip = set()
    if positional:
        options = {key: value for key, value in positional.items() if key != "dest"}
        parser.add_argument(positional["dest"], **options)
        skip.add(positional["dest"])
    parser.add_function_arguments(function, as_group=False, skip=skip)
    arguments = [_spelled(argument) for argument in arguments]
    if first and arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    elif first and not {"-h", "--help", "--config"} & set(arguments):
        raise argparse.ArgumentError(None, f"the recipe comes first: t3d {name} RECIPE.yaml")
    settings = parser.instantiate(parser.parse_args(arguments)).as_dict()
    settings.pop("config", None)
    return function, settings


def _spelled(argument: str) -> str:
    """An option with underscores, as its key is spelled, and a switch with its value."""
    if not argument.startswith("--"):
        return argument
    key, equals, value = argument.partition("=")
    key = "--" + key[2:].replace("-", "_")
    return f"{key}=true" if not equals and key[2:] in SWITCHES else key + equals + value


def _sentence(message: str) -> str:
    """An error of jsonargparse without its internals, on one line."""
    message = " ".join(message.split())
    message = re.sub(r"Problem with given class_path '[^']*': ", "", message)
    message = re.sub(r'Parser key "([^"]*)":', r"\1:", message)
    message = _CLASS.sub(r"\1", message).replace("typing.", "")
    message = re.sub(r"Expected an? (.*?)\. Got value: ", r"expected \1, got ", message)
    message = re.sub(r"^[A-Z]|(?<=: )[A-Z](?=[a-z])", lambda m: m[0].lower(), message)
    return message.partition(" Subclass types expect")[0]
