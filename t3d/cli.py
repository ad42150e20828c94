"""The command line: parse, call, print. What the commands do is in `t3d.commands`."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from t3d import __version__
from t3d.commands import COMMANDS
from t3d.suggest import did_you_mean

SWITCHES = ("dry_run", "smoke", "untie")
"""Options that need no value."""
_SWITCHED = tuple(f"--{key}=true" for key in SWITCHES)

_CLASS = re.compile(r"<class\s+'(?:\w+\.)*(\w+)'>")
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: --([^\s=]+)|[Oo]ption '([^']+)' is not accepted")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 for input that the command cannot use; 2 for a wrong call or recipe; 130 where
        the user or the system stopped it.
    """
    if argv is None:
        _silence_libraries()
        # Clusters stop a job so before they kill it; it ends as tidily as with Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    name = ""
    try:
        name, arguments = _command(sys.argv[1:] if argv is None else argv)
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
        resumable = name in COMMANDS and COMMANDS[name].resumable
        resume = "; run the same command again to resume" if resumable else ""
        print(f"\nt3d: stopped{resume}", file=sys.stderr)
        return 130
    return 0


def _silence_libraries() -> None:
    """Keep warnings and notes of libraries off the screen, here and in the processes started."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # Who asks Python for warnings, as tests do, gets them.
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ["PYTHONWARNINGS"] = "ignore"
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"


def _command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name and its arguments; prints the overview itself."""
    words = list(argv)
    if " ".join(words[:2]) in COMMANDS:
        words[:2] = [" ".join(words[:2])]
    if words and words[0] in COMMANDS:
        return words[0], words[1:]
    parser = argparse.ArgumentParser(
        prog="t3d",
        usage="t3d COMMAND ...",
        description=_overview() if {"-h", "--help"} & set(words[:1]) else "",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"t3d {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    name = parser.parse_args(words).command
    subcommands = [known for known in COMMANDS if known.startswith(f"{name} ")]
    meant = f"; did you mean {' or '.join(subcommands)}?" if subcommands else ""
    meant = meant or did_you_mean(name, COMMANDS) or "; `t3d --help` lists them"
    parser.exit(2, f"t3d: error: unknown command {name!r}{meant}\n")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {c.summary}" for name, c in COMMANDS.items())
    return (
        "Few-step decoding for block-diffusion language models.\n\n"
        f"commands:\n{commands}\n\n"
        "Example: t3d run demo\n`t3d COMMAND --help` shows all options of a command."
    )


def parse(name: str, arguments: Sequence[str]) -> tuple[Callable[..., None], dict[str, Any]]:
    """A command and what to call it with.

    Raises:
        argparse.ArgumentError: for a wrong call, or a wrong key or type in a recipe.
        ValueError: for a value that its dataclass refuses.
    """
    import jsonargparse

    class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Keeps the examples' lines, and names types as they are written."""

        def format_help(self) -> str:
            return _CLASS.sub(r"\1", super().format_help())

    command = COMMANDS[name]
    function, positional = command.function, dict(command.positional)
    first = "RECIPE " if command.takes_recipe else ""
    is_needed = command.takes_recipe and not command.recipe_optional
    last = f" {positional['metavar']}" if positional else ""
    parser = jsonargparse.ArgumentParser(
        prog=f"t3d {name}",
        usage=f"t3d {name} {first}[--KEY VALUE ...]{last}",
        description=(inspect.getdoc(function) or "").split("\n\nArgs:")[0],
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    what = "RECIPE under another name" if first else "YAML file with any of the keys below"
    parser.add_argument("--config", action="config", help=f"{what}; options override it.")
    skip = set()
    if positional:
        skip.add(positional.pop("dest"))
        parser.add_argument(*skip, **positional)
    parser.add_function_arguments(function, as_group=False, skip=skip)
    arguments = [part for argument in arguments for part in _spelled(argument)]
    # A switch that has its value all the same.
    for number in range(len(arguments) - 1, 0, -1):
        before, value = arguments[number - 1 : number + 1]
        if before in _SWITCHED and value in ("true", "false"):
            arguments[number - 1 : number + 1] = [before.replace("true", value)]
    if first and arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    elif is_needed and not {"-h", "--help", "--config"} & set(arguments):
        raise argparse.ArgumentError(None, f"the recipe comes first: t3d {name} RECIPE")
    for number, argument in enumerate(arguments[:-1]):
        if argument == "--config":
            arguments[number + 1] = _recipe(arguments[number + 1])
    try:
        settings = parser.instantiate(parser.parse_args(arguments)).as_dict()
    except argparse.ArgumentError as error:
        unknown = _UNKNOWN.search(str(error))
        keys = parser.get_defaults().keys(branches=True)
        meant = did_you_mean(unknown[1] or unknown[2], keys) if unknown else ""
        raise argparse.ArgumentError(None, f"{error}{meant}") from None
    settings.pop("config", None)
    return function, settings


def _recipe(name: str) -> str:
    """The path of a recipe that is given by its path, or by the name of one that ships.

    Raises:
        argparse.ArgumentError: for a bare name that is neither.
    """
    shipped = files("t3d") / "recipes"
    path = shipped / f"{name}.yaml"
    if Path(name).exists() or Path(name).name != name or Path(name).suffix in (".yaml", ".yml"):
        return name
    if path.is_file():
        return str(path)
    known = sorted(p.name.removesuffix(".yaml") for p in shipped.iterdir() if p.is_file())
    meant = did_you_mean(name, known) or f"; those that ship are {', '.join(known)}"
    raise argparse.ArgumentError(None, f"no recipe file or shipped recipe {name!r}{meant}")


def _spelled(argument: str) -> list[str]:
    """An option with underscores, as its key is spelled, and a switch with its value."""
    if not argument.startswith("--"):
        return [argument]
    key, equals, value = argument.partition("=")
    key = "--" + key[2:].replace("-", "_")
    if key == "--config" and equals:
        return [key, value]
    return [f"{key}=true" if not equals and key[2:] in SWITCHES else key + equals + value]


def _sentence(message: str) -> str:
    """An error of jsonargparse without its internals, on one line."""
    message = " ".join(message.split())
    message = re.sub(r"Problem with given class_path '[^']*': ", "", message)
    message = re.sub(r'Parser key "([^"]*)":', r"\1:", message)
    message = _CLASS.sub(r"\1", message).replace("typing.", "")
    message = re.sub(r"Expected an? (.*?)\. Got value: ", r"expected \1, got ", message)
    message = re.sub(r"^[A-Z]|(?<=: )[A-Z](?=[a-z])", lambda m: m[0].lower(), message)
    return message.partition(" Subclass types expect")[0]
