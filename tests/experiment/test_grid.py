"""What a checkpoint is called in the tables, and which settings make one grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t3d.core.files import write_json
from t3d.decoding.config import DecodingConfig
from t3d.evaluation.config import EvaluationConfig
from t3d.evaluation.evaluate import Identity
from t3d.experiment.grid import check_evaluation, identify, stage_names
from t3d.models import from_pretrained
from t3d.tasks import get_task
from tests.decoding.test_config import OTHER, SAME

STUDENT = {"config": {"method": {"method": "rtd"}}}
PRETRAINED = {"config": {"task": "mini_gsm"}}


@pytest.mark.parametrize(
    ("path", "config", "found"),
    [
        ("checkpoints/mine", STUDENT, Identity("mine", 3, 70, 9, 80)),
        ("checkpoints/mine/seed3", STUDENT, Identity("mine", 3, 70, 9, 80)),
        # Not the seed that it was trained with, so no comparison laid it out.
        ("checkpoints/mine/seed4", STUDENT, Identity("seed4", 3, 70, 9, 80)),
        ("teacher", PRETRAINED, Identity("original")),
        ("nothing", {}, Identity("original")),
    ],
)
def test_a_student_is_its_method_and_a_teacher_the_original(
    tmp_path: Path, path: str, config: dict[str, Any], found: Identity
) -> None:
    (tmp_path / path).mkdir(parents=True)
    counts = {"seed": 3, "optimizer_steps": 70, "tokens_seen": 9, "tokens_decoded": 80}
    write_json(tmp_path / path / "provenance.json", config | counts)
    assert identify(tmp_path / path) == found
    assert identify(tmp_path / path, "named").method == "named"


LM, PROBLEMS = from_pretrained("mini_teacher"), get_task("mini_gsm").examples("dev", 2)


@pytest.mark.parametrize("settings", OTHER)
def test_a_grid_holds_all_that_decode_differently(
    settings: tuple[DecodingConfig, DecodingConfig],
) -> None:
    assert check_evaluation(LM, PROBLEMS, EvaluationConfig(settings=settings)) >= 0
    assert len(set(stage_names(Identity("t3d"), settings).values())) == 2


@pytest.mark.parametrize("settings", [*SAME, (DecodingConfig(), DecodingConfig())])
def test_a_grid_holds_one_of_those_that_decode_alike(
    settings: tuple[DecodingConfig, DecodingConfig],
) -> None:
    with pytest.raises(ValueError, match=f"two settings decode as {settings[1].name}; keep one"):
        check_evaluation(LM, PROBLEMS, EvaluationConfig(settings=settings))


def test_a_stage_names_checkpoint_seed_and_setting() -> None:
    full, fast = DecodingConfig(), DecodingConfig(denoising_steps=1)
    student = stage_names(Identity("t3d", 2), [full, fast])
    assert student[fast] == "evaluation of t3d, seed 2, 4 tokens/step, 1 step"
    teacher = stage_names(Identity("original"), [full, fast])
    assert teacher[full] == "evaluation of original, 1 token/step, 4 steps, full"
