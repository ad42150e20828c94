"""The page at `/`: two models or settings that decode side by side."""

from __future__ import annotations

from importlib.resources import files

from t3d.report.page import Page, page


def playground_page() -> Page:
    """The page, whole: it loads nothing but what its server answers."""
    body, script = (
        files("t3d.serve").joinpath(f"playground.{kind}").read_text("utf-8")
        for kind in ("html", "js")
    )
    return page("t3d playground", body, [script], calls_server=True)
