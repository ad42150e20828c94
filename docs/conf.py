"""The documentation site. `make docs` builds it into build/site.

Sphinx reads the pages where they lie, README and results included, so that a link holds on GitHub
and on the site alike. What is generated is added here: the navigation, the commands' help, the API.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import shutil
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.ext.napoleon import Config, GoogleDocstring

import t3d
from t3d.cli.commands import COMMANDS
from t3d.cli.main import main

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

project = "t3d"
author = "The t3d authors"
release = t3d.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
]
root_doc = "docs/index"
include_patterns = ["*.md", "benchmarks/*.md", "docs/**"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"t3d {release}"
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"code-font-size": "var(--font-size--small--3)"},
}
html_extra_path = ["site"]

autodoc_default_options = {"members": True, "ignore-module-all": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

NAVIGATION = {
    "Start": ["Overview and results </README>", "/docs/tutorial"],
    "How to": [
        "/docs/own_domain",
        "/docs/add_a_task",
        "/docs/lora",
        "/docs/calibrate",
        "/docs/export",
        "/docs/view",
        "/docs/serve",
        "/docs/reproduce",
        "/docs/out_of_memory",
        "/docs/scaling",
        "/docs/interchange",
        "/docs/lm_eval",
        "/docs/add_a_method",
        "/docs/add_a_model_family",
    ],
    "The method explained": [
        "/docs/method",
        "/docs/reinforcement",
        "/docs/verified_decoding",
        "/docs/papers",
        "/docs/theory",
        "/docs/upstream_differences",
        "/benchmarks/RESULTS",
        "/docs/log",
    ],
    "Reference": ["/docs/cli", "/docs/python", "/docs/glossary", "/docs/sandbox"],
    "Development": ["/docs/architecture", "/CONTRIBUTING", "/CHANGELOG"],
}
"""Captions and pages. The build fails for a page that stands nowhere."""


def navigation() -> str:
    parts = []
    for caption, pages in NAVIGATION.items():
        parts.append(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"])
    return "\n\n".join("\n".join(part) for part in parts)


def commands() -> str:
    """A section for each command with its help."""
    os.environ["COLUMNS"] = "84"
    parts = []
    for name, command in COMMANDS.items():
        with redirect_stdout(io.StringIO()) as told, suppress(SystemExit):
            main([*name.split(), "--help"])
        text = told.getvalue().replace(" \b", "")
        parts.append(f"## t3d {name}\n\n{command.summary}\n\n```text\n{text}```")
    return "\n\n".join(parts)


def names() -> str:
    """A table of what `import t3d` offers, then the pages of the modules."""
    rows = []
    for name in t3d.__all__:
        if callable(value := getattr(t3d, name)):
            summary = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
            rows.append(f"| {{py:obj}}`t3d.{name} <{value.__module__}.{name}>` | {summary} |")
    table = "\n".join(["| name | what |", "|---|---|", *rows])
    return f"{table}\n\n## Modules\n\n```{{toctree}}\n:glob:\n:maxdepth: 1\n\napi/*\n```"


def write_modules(app: Sphinx) -> None:
    """Write a page for every package into docs/api, which lists what its modules document."""
    folder = ROOT / "docs" / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in sorted((ROOT / "t3d").glob("*/**/__init__.py")):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        if package == "t3d.cli":  # It has a page of its own.
            continue
        modules = [f"{package}.{file.stem}" for file in sorted(path.parent.glob("[a-z]*.py"))]
        parts = [f"{package}\n{'=' * 60}\n\n.. automodule:: {package}\n"]
        parts += [f"{name}\n{'-' * 60}\n\n.. automodule:: {name}\n" for name in modules]
        (folder / f"{package}.rst").write_text("\n".join(parts), encoding="utf-8")


GENERATED = {root_doc: navigation, "docs/cli": commands, "docs/python": names}
"""Pages that have something generated at their end."""


def add_generated(app: Sphinx, page: str, source: list[str]) -> None:
    if page in GENERATED:
        source[0] += f"\n\n{GENERATED[page]()}\n"


def read_docstring(
    app: Sphinx, kind: str, name: str, what: object, options: object, lines: list[str]
) -> None:
    """Code stands between one backtick as in Markdown, and sections are those of Google's style."""
    text = [re.sub(r"`(?=\w)(?<=\w`)", r"`\\ ", line) for line in lines]
    text = [line if "```" in line else line.replace("`", "``") for line in text]
    if kind not in ("attribute", "data"):  # In these "Rows: tokens" would be a type.
        text = GoogleDocstring(text, Config(napoleon_use_rtype=False), what=kind).lines()
    lines[:] = [line.replace("```", r"\`\`\`") for line in text]


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_modules)
    app.connect("source-read", add_generated)
    app.connect("autodoc-process-docstring", read_docstring)
