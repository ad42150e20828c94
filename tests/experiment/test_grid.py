"""What a checkpoint is called in the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t3d.core.files import write_json
from t3d.evaluation.evaluate import Identity
from t3d.experiment.grid import identify

STUDENT = {"config": {"method": {"method": "rtd"}}}
PRETRAINED = {"config": {"task": "mini_gsm"}}


@pytest.mark.parametrize(
    ("path", "config", "found"),
    [
        ("checkpoints/mine", STUDENT, Identity("mine", 3, 70, 9)),
        ("checkpoints/mine/seed3", STUDENT, Identity("mine", 3, 70, 9)),
        # Not the seed that it was trained with, so no comparison laid it out.
        ("checkpoints/mine/seed4", STUDENT, Identity("seed4", 3, 70, 9)),
        ("teacher", PRETRAINED, Identity("original")),
        ("nothing", {}, Identity("original")),
    ],
)
def test_a_student_is_its_method_and_a_teacher_the_original(
    tmp_path: Path, path: str, config: dict[str, Any], found: Identity
) -> None:
    (tmp_path / path).mkdir(parents=True)
    counts = {"seed": 3, "optimizer_steps": 70, "tokens_seen": 9}
    write_json(tmp_path / path / "provenance.json", config | counts)
    assert identify(tmp_path / path) == found
    assert identify(tmp_path / path, "named").method == "named"
