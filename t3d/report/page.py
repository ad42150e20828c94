"""Self-contained pages: one look and one script of tokens, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from t3d.report.colours import step_colours

NUM_SHADES = 65
"""Colours of the scale, from the first step (or confidence 0) to the last (or 1)."""


def part(name: str) -> str:
    """One of the files that pages are made of."""
    return files("t3d.report").joinpath("web", name).read_text("utf-8")


class Page(NamedTuple):
    """A page, and the content security policy in it, for servers to send as a header too."""

    html: str
    policy: str


def page(
    title: str, body: str, scripts: Sequence[str], *, data: Any = None, calls_server: bool = False
) -> Page:
    """One HTML file that loads nothing, and runs no script and no style but its own.

    Its content security policy names the digests of both, so that text which were taken for HTML
    would still be inert.

    Args:
        title: text of the title.
        body: HTML.
        scripts: what runs after the shared script, which draws tokens.
        data: what the scripts read with `data()`, as JSON.
        calls_server: whether scripts may call the server that the page came from.
    """
    shades = (step_colours(shade, NUM_SHADES) for shade in range(NUM_SHADES))
    classes = (f".c{i}{{background:{back};color:{ink}}}" for i, (back, ink) in enumerate(shades))
    style = part("page.css") + "\n".join(classes)
    script = "\n".join([part("tokens.js"), *scripts])
    sources = {
        "default-src": "'none'",
        "style-src": _digest(style),
        "script-src": _digest(script),
        "img-src": "data:",
        "connect-src": "'self'" if calls_server else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    policy = "; ".join(f"{key} {value}" for key, value in sources.items())
    html = Template(part("page.html")).substitute(
        policy=policy,
        title=escape(title),
        style=style,
        body=body,
        data=_inert(data),
        script=script,
    )
    return Page(html, policy)


def _digest(text: str) -> str:
    """The source expression of an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inert(data: Any) -> str:
    """JSON in which no character can end the element that holds it."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
