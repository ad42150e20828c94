"""The Dockerfile's steps in a plain shell: system packages, and the Makefile's own target."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.cli.test_documents import README, ROOT, commands

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STAGES = {
    name: (base, re.findall(r"^([A-Z]+) +(.*)$", body, re.MULTILINE))
    for base, name, body in re.findall(r"^FROM (\S+) AS (\w+)$(.*?)(?=^FROM|\Z)", TEXT, re.M | re.S)
}
"""Name of a stage to the image it starts from and its instructions."""
SYSTEM = re.compile(
    r"apt-get (update|install -y --no-install-recommends .*)|rm -rf /var/lib/apt/lists/\*"
)


def instructions(stage: str) -> list[tuple[str, str]]:
    base, own = STAGES[stage]
    return (instructions(base) if base in STAGES else []) + own


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_installs_as_the_readme_does(target: str, tmp_path: Path) -> None:
    steps = []
    for keyword, rest in instructions(target):
        if keyword == "COPY":
            *files, to = rest.split()
            for name in files:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, tmp_path / to)
        elif keyword == "RUN":
            steps += [step.strip() for step in rest.split("&&")]
    asked = [step for step in steps if not SYSTEM.fullmatch(step)]
    assert asked == ["make install"]
    assert (["make", "install"], True) in commands(README)
    # What the target would do, with the files that the image has; the test environment is its twin.
    # Variables of a make that runs the tests are not this one's.
    told = subprocess.run(
        ["make", "--dry-run", "install"],
        cwd=tmp_path,
        env=os.environ | {"MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "PIP_CONSTRAINT=constraints.txt" in told
    assert re.search(r"pip install .*--editable '\.'$", told, re.MULTILINE)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    for name in (project["readme"], *project["license-files"], "t3d/__init__.py"):
        assert (tmp_path / name).is_file()
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    [version] = re.findall(r"^python:3\.(\d+)-slim$", STAGES["base"][0])
    assert int(low) <= int(version) < int(high)
