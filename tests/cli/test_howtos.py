"""The Python of the how-tos and of docs/index.md runs as it stands, in the order of a page."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

import pytest

from t3d.models.families import FAMILIES
from t3d.training import methods
from tests.cli.test_documents import ROOT, blocks

PAGES = {"index": "student", "add_a_method": "focal", "add_a_task": "", "add_a_model_family": ""}
"""Pages, and the checkpoint that each trains."""


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A page may add lines to these tables, which other tests should not see.
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS})
    monkeypatch.setitem(FAMILIES, "mistral", FAMILIES["sdar"])
    del FAMILIES["mistral"]
    script = tmp_path / f"{page}.py"
    code = "\n".join(blocks(ROOT / "docs" / f"{page}.md", "python"))
    script.write_text(code, encoding="utf-8")
    run_path(str(script), run_name=page)
    saved = "".join(path.parent.name for path in tmp_path.glob("runs/*/model.safetensors"))
    assert saved == PAGES[page]
    assert ("focal" in methods.METHODS) == (page == "add_a_method")
    assert ("mistral" in FAMILIES) == (page == "add_a_model_family")
