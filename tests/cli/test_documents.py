"""The documents are true: what they show parses or runs, and what they name is there."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

import t3d as package
from t3d.cli import main as cli
from t3d.cli.commands import COMMANDS
from t3d.decoding.config import DecodingConfig, Remasking
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [
    *DOCUMENTS,
    *(
        ROOT / name
        for name in ("CHANGELOG.md", "benchmarks/RESULTS.md", "examples/quickstart.ipynb")
    ),
]
HELP = sorted((ROOT / "t3d" / "cli").glob("*.py"))
RECIPES = {path.stem for path in (ROOT / "t3d" / "recipes").glob("*.yaml")}

TOOLS = ("t3d", "make", "python", "torchrun", "accelerate", "pip")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
SOURCES = {"t3d.interop.lm_eval": "lm_eval._cli.run"}
"""Modules whose options another one has."""
OTHERS = ("generate.py", "rename_key.py", "train/self_ddo_sdar_full.py", "train/sft_sdar.py")
"""Files of SDAR, of T3D's authors and of dLLM-RL."""
FEW: dict[Any, int] = {4000: 32, 500: 32, 300: 2}
"""Numbers of the examples, and smaller ones to run them with."""


def blocks(path: Path, *languages: str) -> list[str]:
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def inline(path: Path) -> list[str]:
    return [" ".join(code.split()) for code in INLINE.findall(prose(path))]


def words(line: str) -> list[str]:
    """A shell line's words, without its comment and redirections."""
    found = shlex.split(line, comments=True)
    end = next((i for i, word in enumerate(found) if word in ("<", ">", "|", "&&")), None)
    return found[:end]


def examples(path: Path) -> Iterator[list[str]]:
    """The commands of the docstrings in a file, joined over their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            for line in re.findall(r"^  (t3d .*(?:\n      .*)*)", text, re.MULTILINE):
                yield words(line)


def commands(path: Path) -> list[tuple[list[str], bool]]:
    """All commands of a document, and whether they are whole rather than mentioned."""
    if path.suffix == ".py":
        return [(command, True) for command in examples(path)]
    lines = [
        line
        for block in blocks(path, "", "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith(tuple(f"{tool} " for tool in TOOLS))
    ]
    mentioned = [
        code
        for code in inline(path)
        if re.match(r"(t3d|make|python -m|torchrun|accelerate launch|pip install)( |$)", code)
    ]
    return [(words(line), True) for line in lines] + [(words(code), False) for code in mentioned]


def recipes(path: Path) -> dict[str, str]:
    """The YAML files that a document shows, by the names in their first lines."""
    named = [(re.match(r"# (\S+\.yaml)\n", block), block) for block in blocks(path, "yaml")]
    return {"my.yaml": "{}\n"} | {match[1]: block for match, block in named if match}


@cache
def options(command: str, run: Run) -> set[str]:
    return set(re.findall(r"--[\w.]+", run(*command.split(), "--help").out))


class Checker:
    """What is wrong with a command, by the tool that it calls; AssertionError says it."""

    def __init__(self, run: Run, folder: Path, recipes: dict[str, str]) -> None:
        self.run = run
        self.recipes = {name: str(folder / name) for name in recipes}
        for name, text in recipes.items():
            (folder / name).write_text(text)

    def check(self, command: list[str], *, whole: bool) -> None:
        {
            "t3d": self.t3d,
            "make": self.make,
            "python": self.python,
            "torchrun": self.torchrun,
            "accelerate": self.accelerate,
            "pip": self.pip,
        }[command[0]](command[1:], whole)

    def t3d(self, call: list[str], whole: bool) -> None:
        if call[:1] in ([], ["COMMAND"], ["--help"], ["--version"]):
            return
        size = 2 if " ".join(call[:2]) in COMMANDS else 1
        name, arguments = " ".join(call[:size]), call[size:]
        assert name in COMMANDS, f"no command {name!r}"
        recipe = {"run": "demo", "compare": "mini_compare", "pretrain": "mini_teacher"}.get(name)
        filled = {"RECIPE": recipe} | self.recipes
        arguments = [filled.get(word) or word for word in arguments if word != "..."]
        for option in re.findall(r"--([\w.-]+)", " ".join(arguments)):
            key = option.replace("-", "_")
            known = options(name, self.run)
            assert known & {f"--{key}", f"--{key.rpartition('.')[0]}"}, f"no option --{option}"
        try:
            function, settings = cli.parse(name, arguments)
        except argparse.ArgumentError as error:
            missing = re.search(r"arguments are required|the recipe comes first", str(error))
            if (whole and "..." not in call) or missing is None:
                raise
            return
        if name == "generate" and whole and settings["model"] == "mini_teacher":
            outcome = self.run(name, *arguments)
            assert (outcome.code, outcome.err) == (0, ""), outcome.err
            if settings["task"] is not None and settings["decoding"] == DecodingConfig():
                assert outcome.out.endswith("verdict:  right\n"), outcome.out
        if settings.get("dry_run"):
            function(**settings)

    def make(self, targets: list[str], whole: bool) -> None:
        known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {target for target in targets if "=" not in target} <= {*known}

    def python(self, call: list[str], whole: bool) -> None:
        assert call[0] == "-m"
        spec = importlib.util.find_spec(call[1])
        assert spec is not None, f"no module {call[1]}"
        source = importlib.util.find_spec(SOURCES.get(call[1], call[1]))
        assert source is not None
        assert source.origin is not None
        text = Path(source.origin).read_text(encoding="utf-8")
        for option in call[2:]:
            assert not option.startswith("--") or f'"{option}"' in text, f"no option {option}"

    def torchrun(self, call: list[str], whole: bool) -> None:
        from torch.distributed.run import get_args_parser

        if call:
            self.launched(get_args_parser().parse_args(call), whole)

    def accelerate(self, call: list[str], whole: bool) -> None:
        from accelerate.commands.launch import launch_command_parser

        assert call[0] == "launch"
        if call[1:]:
            asked = launch_command_parser().parse_args(call[1:])
            assert (ROOT / asked.config_file).is_file(), f"no file {asked.config_file}"
            self.launched(asked, whole)

    def launched(self, asked: argparse.Namespace, whole: bool) -> None:
        assert asked.module
        assert asked.training_script == "t3d"
        self.t3d(asked.training_script_args, whole)

    def pip(self, call: list[str], whole: bool) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert call[0] == "install"
        for what in call[1:]:
            extras = re.fullmatch(r"(?:t3d|\.)(?:\[(.*)\])?", what)
            assert extras, what
            assert {*(extras[1] or "dev").split(",")} <= {*project["optional-dependencies"]}, what


@pytest.mark.parametrize("path", [*DOCUMENTS, *HELP], ids=lambda path: path.name)
def test_every_command_parses_and_the_quick_ones_run(path: Path, t3d: Run, tmp_path: Path) -> None:
    checker, wrong = Checker(t3d, tmp_path, recipes(path)), []
    for command, whole in commands(path):
        try:
            checker.check(command, whole=whole)
        except (AssertionError, ValueError, argparse.ArgumentError, SystemExit) as error:
            wrong.append(f"{shlex.join(command)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_the_readme_shows_every_command_and_recipe() -> None:
    calls = [" ".join(command[1:]) + " " for command, _ in commands(README) if command[0] == "t3d"]
    shown = {name for name in COMMANDS if any(call.startswith(f"{name} ") for call in calls)}
    assert shown == {*COMMANDS}
    assert {*inline(README)} >= RECIPES


def test_a_command_that_is_wrong_is_found(t3d: Run, tmp_path: Path) -> None:
    checker = Checker(t3d, tmp_path, {})
    lines = (
        "t3d rum demo",
        "t3d run nosuch",
        "t3d train --model M --method t3d --output S",
        "t3d eval --model M --outptu E",
        "t3d generate 'What is the capital of France?'",
        "make dmeo",
        "python -m benchmarks.nosuch",
        "python -m benchmarks.soak --nosuch 3",
        "torchrun --nproc-per-node 2 -m -- t3d train --nosuch 3",
        "accelerate launch --config_file t3d/recipes/accelerate/nosuch.yaml -m t3d run demo",
        "pip install 't3d[nosuch]'",
    )
    for line in lines:
        with pytest.raises((AssertionError, argparse.ArgumentError)):
            checker.check(words(line), whole=True)


def resolve(node: ast.expr, names: dict[str, object]) -> object | None:
    """What a name or an attribute of an imported one is; None for what the code itself makes."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_uses_names_and_parameters_that_exist(path: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                names |= {alias.name: importlib.import_module(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                names |= {alias.name: getattr(module, alias.name) for alias in node.names}
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute):
                resolve(node, names)
            if isinstance(node, ast.Call) and (called := resolve(node.func, names)) is not None:
                assert isinstance(called, Callable)
                keywords = {str(keyword.arg): None for keyword in node.keywords}
                inspect.signature(called).bind(*node.args, **keywords)


class Fewer(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.copy_location(ast.Constant(FEW.get(node.value, node.value)), node)


def test_the_example_runs_on_fewer_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(Fewer().visit(ast.parse(blocks(README, "python")[0])), "README.md", "exec")
    few: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 8}
    config = package.TrainingConfig
    monkeypatch.setattr(package, "TrainingConfig", lambda **asked: config(**(asked | few)))
    exec(code, {})
    assert capsys.readouterr().out
    assert list(tmp_path.glob("runs/**/student/model.safetensors"))


def anchors(path: Path) -> set[str]:
    """What links to a file may end in, as GitHub makes it of headings."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(link)
    assert not wrong, wrong


@cache
def repository() -> dict[str, str]:
    """The repository's files, with the text of those in Python."""
    paths = [
        path
        for folder in ("t3d", "tests", "docs", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    ]
    return {
        f"/{path.relative_to(ROOT)}": path.read_text(encoding="utf-8")
        if path.suffix == ".py"
        else ""
        for path in paths
    }


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_every_file_and_every_name_in_one_exists(path: Path) -> None:
    """`t3d/core/rng.py`, `t3d/noising/state.py:Blocks`, `test_rng.py::test_x`, a file's end."""
    wrong, before = [], ""
    for code in inline(path):
        match = re.fullmatch(r"([\w./-]*\.py|[\w/.-]+/[\w.-]+\.\w+)?(?:(::?) ?([\w.]+))?", code)
        if match is None or not (match[1] or match[2] == "::"):
            continue
        file, name = match[1] or before, (match[3] or "").rpartition(".")[2]
        before = file
        if file in OTHERS or file.startswith(("runs/", "data/", "export/")):
            continue
        texts = [text for known, text in repository().items() if known.endswith(f"/{file}")]
        if not any(re.search(rf"\b{name}\b", text) or not name for text in texts):
            wrong.append(code)
    assert not wrong, wrong


def test_the_architecture_names_the_owner_of_every_object() -> None:
    text = prose(ROOT / "docs" / "architecture.md")
    rows = re.findall(r"^\|[^|]*\|([^|]*)\| `(t3d/[^`]*)` \|$", text, re.MULTILINE)
    assert len(rows) > 5
    for names, file in rows:
        defined = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        classes = {node.name for node in defined if isinstance(node, ast.ClassDef)}
        assert {*INLINE.findall(names)} <= classes


def test_every_module_stands_on_a_floor_of_the_architecture() -> None:
    (floors,) = [block for block in blocks(ROOT / "docs" / "architecture.md", "") if "cli" in block]
    names = set(re.findall(r"^[ \d]{3}((?:\w+ {1,2})*\w+)", floors, re.MULTILINE))
    modules = {path.stem for path in (ROOT / "t3d").iterdir() if path.suffix in ("", ".py")}
    modules -= {"__init__", "__main__", "__pycache__", "assets", "recipes"}
    assert {name for line in names for name in line.split()} >= modules


def test_decoding_settings_are_spelled_as_in_the_code() -> None:
    glossary, harness = (inline(ROOT / "docs" / name) for name in ("glossary.md", "lm_eval.md"))
    assert {*get_args(Remasking)} <= {*glossary}
    assert {field.name for field in fields(DecodingConfig)} <= {*harness}
