"""What a student is trained on: which trajectories, of which prompts, decoded how."""

from __future__ import annotations

from pathlib import Path

import pytest

from t3d.core.store import TrajectoryStore
from t3d.core.trajectory import Trajectory
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.evaluation.config import EvaluationConfig
from t3d.experiment.recipe import DataConfig, RunConfig
from t3d.experiment.rounds import check_training
from t3d.experiment.rows import own_rollout, store_path, verified
from t3d.experiment.run import run
from t3d.models import from_pretrained
from t3d.tasks import get_task
from t3d.training.config import MethodConfig, TrainingConfig


def test_methods_share_a_store_unless_they_decode_differently(tmp_path: Path) -> None:
    config = RunConfig(output=tmp_path)
    plain, again = MethodConfig("naive_td"), MethodConfig("rtd")
    coupled = MethodConfig("redi_coupled")
    greedy = MethodConfig("naive_td", decoding={"temperature": 0.0})
    assert store_path(config, plain) == store_path(config, again) == tmp_path / "trajectories"
    assert len({store_path(config, method) for method in (plain, coupled, greedy)}) == 3
    assert own_rollout(config, coupled).decoding.random_share > 0
    assert own_rollout(config, greedy).decoding.temperature == 0
    assert own_rollout(config, again).decoding == config.rollout.decoding
    assert own_rollout(config, again, student=True).decoding.denoising_steps == 2


@pytest.mark.parametrize(
    ("decoding", "message"),
    [({"heat": 1}, "method naive_td: decoding: .*heat"), ({"temperature": -1}, "temperature")],
)
def test_unknown_decoding_settings_are_refused(decoding: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_rollout(RunConfig(), MethodConfig("naive_td", decoding=decoding))


def test_training_needs_a_step_a_round_and_a_batch(tmp_path: Path) -> None:
    training = TrainingConfig(steps=2, batch_size=8, micro_batch_size=8)
    with pytest.raises(ValueError, match="'redi': 3 rounds need as many optimizer steps"):
        check_training(MethodConfig("redi"), training, 100, tmp_path)
    check_training(MethodConfig("naive_td", num_sequences=8), training, 100, tmp_path)
    with pytest.raises(ValueError, match="7 training sequences are fewer than batch_size=8"):
        check_training(MethodConfig("naive_td", num_sequences=7), training, 100, tmp_path)


def test_every_method_takes_several_responses_to_a_prompt(tmp_path: Path) -> None:
    decoding = DecodingConfig(temperature=1.0, max_new_tokens=96)
    config = RunConfig(
        task=["mini_gsm", "mini_week"],
        output=tmp_path / "run",
        data=DataConfig(num_prompts=4, num_responses=3, num_problems=1),
        rollout=RolloutConfig(decoding),
        methods={name: MethodConfig(name) for name in ("sft", "t3d", "rtd")},
        training=TrainingConfig(steps=4, batch_size=4, micro_batch_size=4),
        evaluation=EvaluationConfig((decoding,), measure_latency=False),
    )
    run(config, progress=False)
    own = TrajectoryStore.open(tmp_path / "run/trajectories").read()
    assert len(own) == config.data.num_sequences == 12
    prompts = {tuple(t.prompt_ids): set[tuple[int, ...]]() for t in own}
    for t in own:
        prompts[tuple(t.prompt_ids)].add(tuple(t.response_ids))
    assert [len(responses) for responses in prompts.values()] == [3] * 4
    # The rounds of rtd pair a student's response with the teacher's of the same number.
    later = TrajectoryStore.open(tmp_path / "run/rounds/rtd/trajectories1").read()
    assert {t.prompt_id for t in later} < {t.prompt_id for t in own}


def test_the_teacher_stands_in_where_the_answers_differ(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lm, task = from_pretrained("mini_teacher"), get_task("mini_gsm")
    examples = task.examples("train", 5)

    def trajectory(number: int, text: str) -> Trajectory:
        ids, after = lm.encode_responses([text, r"\boxed{9}"])
        num = len(ids) + len(after)
        return Trajectory(
            prompt_id=examples[number].id,
            prompt_ids=[0],
            # What follows the stop token belongs to the block, not to the answer.
            response_ids=ids + after,
            initial_ids=[lm.mask_token_id] * num,
            step_map=[0] * num,
            log_probs=[0.0] * num,
            num_response_tokens=len(ids),
            finish_reason="stop",
            block_size=4,
        )

    teacher = [trajectory(i, rf"Now \boxed{{{i}}}.") for i in range(5)]
    same = trajectory(0, r"The answer is \boxed{0}.")
    other = trajectory(1, r"The answer is \boxed{7}.")
    silent = trajectory(3, "The answer is")
    own = [same, other, silent]
    asked = [examples[0], examples[1], examples[3]]
    # The order of the teacher's does not matter.
    assert verified(task, asked, lm, own, teacher[::-1]) == [same, teacher[1], teacher[3]]
    told = capsys.readouterr().err
    assert "the teacher's response stands in for 2 of 3; without a final answer are 1 of" in told
    assert told.endswith("and 0 of the teacher's\n")
    # A teacher whose answers cannot be read verifies nothing, which is not to pass in silence.
    mute = [trajectory(i, "The answer is 3.") for i in range(5)]
    assert verified(task, asked, lm, own, mute) == [mute[0], mute[1], mute[3]]
    told = capsys.readouterr().err
    assert "3 of the teacher's: too few to verify by; mini_gsm reads an answer in \\boxed{}" in told
