"""The command line: parse, call, print. What the commands do is in `t3d.cli.commands`."""

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
from dataclasses import is_dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from t3d import __version__
from t3d.cli.commands import COMMANDS
from t3d.core.suggest import did_you_mean

SWITCHES = ("dry_run", "smoke", "untie")
"""Options that need no value."""
_SWITCHED = tuple(f"--{key}=true" for key in SWITCHES)

MAX_RECIPE_BYTES = 2**18
MAX_RECIPE_VALUES = 10_000
"""Aliases count as often as they are used: a few lines of them may stand for billions."""

MAX_INTEGER = 2**63
MAX_SENTENCE = 1000
"""Characters of an error, which may hold a value that is as long as a file."""

_CLASS = re.compile(r"<class\s+'(?:\w+\.)*(\w+)'>")
_UNION = re.compile(
    r"[Dd]oes not validate against any of the Union subtypes Subtypes: \[(.*?)\] "
    r"Errors: - (.*?) Given value type: .*? Given value: ?(.*)"
)
_NO_MEMORY = re.compile(r"can't allocate memory: you tried to allocate (\d+)|out of memory")
_NO_DISK = re.compile(
    "No space left on device|File too large|Disk quota exceeded|file write failed"
)
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: --([^\s=]+)|[Oo]ption '([^']+)' is not accepted")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 for input that the command cannot use; 2 for a wrong call or recipe; 130 where
        the user or the system stopped it.
    """
    stops: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stops.append(number)
        raise KeyboardInterrupt

    if argv is None:
        _silence_libraries()
        # Clusters send SIGTERM before they kill a job, which should end as tidily as with Ctrl-C.
        # SIGINT is left alone where a shell has it ignored.
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)
    name, settings = "", {}
    try:
        name, arguments = _command(sys.argv[1:] if argv is None else argv)
        function, settings = parse(name, arguments)
        function(**settings)
    except argparse.ArgumentError as error:
        hint = f"`t3d {name} --help` lists what it takes"
        print(f"t3d {name}: error: {_sentence(str(error))}; {hint}", file=sys.stderr)
        return 2
    except Exception as error:
        # A library that was stopped amid its import may swallow that, and fail later.
        if stops:
            return _stopped(name)
        told = _beyond_the_machine(error, settings.get("output"))
        if told is None and isinstance(error, OSError) and error.filename is not None:
            told = f"{error.filename}: {error.strerror}; name another path, or mend this one"
        if told is None and not isinstance(error, ValueError | OSError):
            raise
        print(f"t3d: error: {_short(told or str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _stopped(name)
    return 0


def _stopped(name: str) -> int:
    resumable = name in COMMANDS and COMMANDS[name].resumable
    resume = "; run the same command again to resume" if resumable else ""
    print(f"\nt3d: stopped{resume}", file=sys.stderr)
    return 130


def _beyond_the_machine(error: Exception, output: Path | None) -> str | None:
    """What to tell the user where memory or disk does not suffice; None for other errors.

    Libraries say so in errors of their own kinds, and mostly without a path.
    """
    if isinstance(error, ValueError):
        return None
    memory, disk = _NO_MEMORY.search(str(error)), _NO_DISK.search(str(error))
    if memory or isinstance(error, MemoryError):
        asked = f" for {memory[1]} bytes" if memory and memory[1] else ""
        return (
            f"the memory does not suffice{asked}; give smaller sizes, such as of batches and "
            "blocks, or a smaller model"
        )
    if disk is None:
        return None
    place = error.filename if isinstance(error, OSError) else None
    return (
        f"{place or output or 'the output'}: cannot be written: {disk[0]}; "
        "free the space or choose another place, then run the same again"
    )


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
    # A switch needs no value, but may be given one as the next word.
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
            _check_recipe(Path(arguments[number + 1]))
    for option, behind in pairwise([*arguments, ""]):
        key, equals, value = option.partition("=")
        value = value if equals else behind
        if key.startswith("--") and value.startswith(("{", "[", "&")):
            _check_yaml(key, value)
    try:
        parsed = parser.parse_args(arguments)
        for key, default in parser.get_defaults().items(branches=True):
            # The parser takes any value for a group of keys, and would drop it or fail later.
            if isinstance(default, jsonargparse.Namespace) and not isinstance(
                parsed[key], type(default)
            ):
                raise argparse.ArgumentError(None, f"{key}: expected keys, got {parsed[key]}")
        # Until this check, null passes for a value of any type.
        parser.validate(parsed, False)
        settings = parser.instantiate(parsed).as_dict()
    except ValueError as error:
        raise ValueError(_without_union(str(error))) from None
    except TypeError as error:
        raise argparse.ArgumentError(None, str(error)) from None
    except argparse.ArgumentError as error:
        unknown = _UNKNOWN.search(str(error))
        keys = parser.get_defaults().keys(branches=True)
        meant = did_you_mean(unknown[1] or unknown[2], keys) if unknown else ""
        raise argparse.ArgumentError(None, f"{error}{meant}") from None
    settings.pop("config", None)
    _check_integers("", settings)
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


def _check_recipe(path: Path) -> None:
    """Check that a recipe is a file that is read in bounded time, with texts as keys.

    One that is missing or no YAML is left to the parser.

    Raises:
        argparse.ArgumentError: naming the file.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise argparse.ArgumentError(None, f"{path}: no regular file; save the recipe to one")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise argparse.ArgumentError(
            None, f"{path}: larger than {MAX_RECIPE_BYTES} bytes; this is no recipe"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise argparse.ArgumentError(None, f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise argparse.ArgumentError(None, f"{path}: not UTF-8 text; save it as such") from None
    _check_yaml(str(path), text)


def _check_yaml(name: str, text: str) -> None:
    """Check that YAML is a tree of bounded size whose keys are texts.

    Raises:
        argparse.ArgumentError: naming it.
    """
    import yaml

    sizes: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        """Values in a node; one that is being counted holds itself."""
        if id(node) not in sizes:
            sizes[id(node)] = MAX_RECIPE_VALUES
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            if isinstance(node, yaml.MappingNode):
                for key, _ in parts:
                    if not key.tag.endswith((":str", ":merge")):
                        where = f"line {key.start_mark.line + 1}"
                        shown = key.value if isinstance(key, yaml.ScalarNode) else "that is a list"
                        message = f"{name}, {where}: the key {shown} is no text; put it in quotes"
                        raise argparse.ArgumentError(None, message)
                parts = [value for _, value in parts]
            sizes[id(node)] = 1 + sum(map(count, parts))
        return sizes[id(node)]

    try:
        root = yaml.compose(text, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
        size = 0 if root is None else count(root)
    except RecursionError:
        raise argparse.ArgumentError(None, f"{name}: nested too deeply; flatten it") from None
    except yaml.YAMLError:
        return
    if size > MAX_RECIPE_VALUES:
        raise argparse.ArgumentError(
            None,
            f"{name}: stands for more than {MAX_RECIPE_VALUES} values, with aliases written out; "
            "shorten it",
        )


def _check_integers(key: str, value: Any) -> None:
    """Check that every whole number fits in 64 bits.

    Raises:
        ValueError: naming the key.
    """
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError(f"{key}: numbers must lie within 64 bits, got {value}")
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for name, part in value.items():
            _check_integers(f"{key}.{name}".lstrip("."), part)


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
    message = _without_union(message)
    message = re.sub(r"Problem with given class_path '[^']*': ", "", message)
    message = re.sub(r'Parser key "([^"]*)":', r"\1:", message)
    message = re.sub(r"[Uu]nable to load config '(.*?)' - .*", r"expected keys, got \1", message)
    message = _CLASS.sub(r"\1", message).replace("typing.", "")
    message = re.sub(r"Expected an? (.*?)\. Got value: ?", r"expected \1, got ", message)
    message = re.sub(
        r"[Nn]ot a valid subclass of (\w+)\. Got value: ?", r"expected \1, got ", message
    )
    message = re.sub(r"^[A-Z]|(?<=: )[A-Z](?=[a-z])", lambda m: m[0].lower(), message)
    message = message.partition(" Subclass types expect")[0]
    return _short(re.sub(r"\bgot ?$", "got nothing", message))


def _short(message: str) -> str:
    """An error on one line of bounded length, without the names of Python's classes."""
    message = _CLASS.sub(r"\1", " ".join(message.split()))
    message = re.sub(r"\b\w+Error: ", "", message).replace("NoneType", "null")
    return message if len(message) <= MAX_SENTENCE else f"{message[:MAX_SENTENCE]} ..."


def _without_union(message: str) -> str:
    """What jsonargparse says of a value that fits none of several types, without its internals."""
    found = _UNION.search(" ".join(message.split()))
    if found is None:
        return message
    mere = ("Expected", "Not a valid subclass", "a class path", "a dict with")
    told = [error for error in found[2].split(" - ") if not error.startswith(mere)]
    kinds = _CLASS.sub(r"\1", found[1]).replace(", ", " or ")
    before = " ".join(message.split())[: found.start()]
    return before + (told[0] if told else f"expected {kinds}, got {found[3]}")
