"""CITATION.cff is valid and current, and every method says which papers it is taken from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

import t3d
from t3d.training.methods import METHODS

ROOT = Path(__file__).parents[2]
# Of the Citation File Format project, https://doi.org/10.5281/zenodo.5171937, CC-BY-4.0.
SCHEMA = json.loads(Path(__file__).with_name("cff-1.2.0.schema.json").read_text(encoding="utf-8"))


def test_the_citation_is_valid_and_current() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    jsonschema.validate(citation, SCHEMA)
    assert citation["version"] == t3d.__version__
    [paper] = citation["references"]
    assert METHODS["t3d"].papers == (f"T3D, {paper['identifiers'][0]['value']}",)
    del paper["authors"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(citation, SCHEMA)


def test_methods_and_the_page_of_papers_name_the_same() -> None:
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    numbers = {
        name: {paper.partition(", arXiv:")[2] for paper in method.papers}
        for name, method in METHODS.items()
    }
    assert numbers == {name: {*re.findall(r"\d{4}\.\d{5}", rows[name])} for name in METHODS}
    assert all(numbers.values())
