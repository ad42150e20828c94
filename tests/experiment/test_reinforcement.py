"""Rounds of reinforcement: what earns which reward, what is trained on, and what a kill costs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t3d.core.provenance import hash_weights
from t3d.core.store import TrajectoryStore
from t3d.core.trajectory import Trajectory
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.evaluation.config import WatchConfig
from t3d.experiment import rounds, units
from t3d.experiment.recipe import DataConfig, RunConfig
from t3d.experiment.reinforcement import is_hacked, rewarded_rows, taught
from t3d.experiment.rounds import (
    check_recipe,
    is_trained,
    record_trajectories,
    student_work,
    train_student,
)
from t3d.experiment.rows import num_tokens
from t3d.experiment.run import prepare
from t3d.experiment.units import Unit
from t3d.models import LanguageModel, from_pretrained
from t3d.models.tokenizers import BUILT_IN
from t3d.objectives import GroupAdvantage
from t3d.tasks import Example, get_task
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.trainer import TrainingCallback

ANSWERS = GroupAdvantage(group_size=2, speed_weight=0.0)


def response(lm: LanguageModel, text: str, *, is_whole: bool = True, name: str = "p") -> Trajectory:
    """Every token by itself in a step of its block."""
    # The second one only makes the pair a batch.
    ids, _ = lm.encode_responses([text, text])
    return Trajectory(
        prompt_id=name,
        prompt_ids=[0] * 4,
        response_ids=ids,
        initial_ids=[lm.mask_token_id] * len(ids),
        step_map=[i % 4 for i in range(len(ids))],
        log_probs=[-0.1] * len(ids),
        num_response_tokens=len(ids),
        finish_reason="stop" if is_whole else "length",
        block_size=4,
    )


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return from_pretrained("mini_teacher")


def examples_of(num: int) -> list[Example]:
    return [e for e in get_task("mini_gsm").examples("train", num) for _ in range(2)]


def test_right_answers_are_rewarded_truncated_ones_are_not(lm: LanguageModel) -> None:
    task, examples = get_task("mini_gsm"), examples_of(4)
    right = [str(example.reference) for example in examples]
    own = [
        *(response(lm, right[0]), response(lm, r"It is \boxed{-1}.")),
        # Cut at the token limit, a right answer is wrong; nobody is right, so nothing is learned.
        *(response(lm, right[2], is_whole=False), response(lm, "Who knows?")),
        # All are right, which teaches nothing either.
        *(response(lm, right[4]), response(lm, right[5])),
        *(response(lm, "No."), response(lm, rf"\boxed{{{examples[7].answer}}}")),
    ]
    rows, facts = rewarded_rows(task, examples, lm, own, ANSWERS)
    assert [row["input_ids"][4:] for row in rows] == [own[i].response_ids for i in (0, 1, 6, 7)]
    assert [row["advantage"] for row in rows] == pytest.approx([1, -1, -1, 1])
    assert [row["right"] for row in rows] == [1, 0, 0, 1]
    lengths = [own[i].num_response_tokens for i in (0, 1, 6, 7)]
    assert {row["average_length"] for row in rows} == {sum(lengths) / 4}
    assert facts["signal"] == 0.5
    assert facts["right"] == facts["answer"] == 4 / 8
    assert facts["truncated"] == 1 / 8
    assert facts["no_answer"] == 2 / 8
    # "It is" and a full stop are not many words.
    assert facts["answer_only"] == 2 / 8
    assert facts["tokens_per_forward"] == 1


def test_speed_is_tokens_a_pass(lm: LanguageModel) -> None:
    examples = examples_of(1)
    own = [response(lm, str(example.reference)) for example in examples]
    own[1] = replace(own[1], step_map=[0] * len(own[1].step_map))
    advantage = GroupAdvantage(group_size=2)
    rows, facts = rewarded_rows(get_task("mini_gsm"), examples, lm, own, advantage)
    assert [row["advantage"] for row in rows] == pytest.approx([-1, 1])
    assert 1 < facts["tokens_per_forward"] < 4


def test_the_teachers_answer_stands_in_for_the_label(lm: LanguageModel) -> None:
    task, examples = get_task("mini_gsm"), examples_of(2)
    wrong = response(lm, r"So it is \boxed{123}.")
    silent = response(lm, "So it is.")
    found = taught(task, examples, lm, [wrong, silent])
    assert [e.answer for e in found] == ["123", "123", None, None]
    own = [wrong, response(lm, str(examples[1].reference)), silent, silent]
    rows, facts = rewarded_rows(task, found, lm, own, ANSWERS)
    # With the teacher counts as right, the gold answer does not; without one nothing is right.
    assert [row["right"] for row in rows] == [1, 0]
    assert facts["right"] == 0.25


def test_a_start_is_a_student_of_the_same_model(
    trained: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tmp_path / "student"
    shutil.copytree(trained.output / "checkpoints" / "first", student)
    method = replace(trained.methods["labelled"], start=str(student))
    config = replace(trained, output=tmp_path / "run", methods={"labelled": method})
    prepare(config)
    # A folder does not stand for a method of its name, which would have to start from itself.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is neither a method that the recipe names before it"):
        check_recipe(replace(config, methods={"student": replace(method, start="student")}))
    record = json.loads((student / "provenance.json").read_text())
    path = student / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["Tom"], ids["Ben"] = ids["Ben"], ids["Tom"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="has another tokenizer than mini_teacher; start from a"):
        prepare(config)
    (student / "provenance.json").write_text(json.dumps(record | {"tokens_seen": None}))
    with pytest.raises(ValueError, match="provenance.json: tokens_seen must be a whole"):
        check_recipe(config)
    # What was converted or pretrained is no student.
    (student / "provenance.json").write_text(json.dumps(record | {"config": {}}))
    with pytest.raises(ValueError, match="nor the directory of a student"):
        check_recipe(config)


def test_a_program_earns_the_share_of_its_tests(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    tests = ["assert f(1) == 1", "assert f(2) == 4", "assert f(3) == 9", "assert f(0) == 0"]
    row = {"question": "Square a number.", "domain": "code", "tests": tests}
    path.write_text(json.dumps(row))
    task = get_task(str(path), unsafe_exec=True)
    examples = task.examples("train", 1) * 2
    programs = ["def f(x):\n    return x", "def f(x):\n    return x * x"]
    own = [response(lm, f"```python\n{program}\n```") for program in programs]
    rows, facts = rewarded_rows(task, examples, lm, own, ANSWERS)
    assert facts["answer"] == (0.5 + 1) / 2
    assert facts["right"] == 0.5
    assert facts["answer_only"] == 0
    assert [row["right"] for row in rows] == [0, 1]


class Terse:
    """A task on which hacking pays: an answer counts if hardly anything stands before it."""

    name = "terse"

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Any]:
        grades = get_task("mini_gsm").grade(examples, outputs)
        return [
            replace(g, correct=g.string_correct and len(text) < 20)
            for g, text in zip(grades, outputs, strict=True)
        ]


def test_answers_that_say_nothing_are_detected(lm: LanguageModel) -> None:
    """On Terse, the responses with an advantage are those that the warning is about."""
    task, examples = Terse(), examples_of(2)
    told = [response(lm, str(e.reference)) for e in examples]
    bare = [response(lm, rf"\boxed{{{e.answer}}}") for e in examples]
    mixed = [bare[0], told[1], told[2], bare[3]]
    rows, first = rewarded_rows(task, examples, lm, mixed, ANSWERS)  # type: ignore[arg-type]
    assert [row["advantage"] for row in rows] == pytest.approx([1, -1, -1, 1])
    _, honest = rewarded_rows(get_task("mini_gsm"), examples, lm, told, ANSWERS)
    _, hacked = rewarded_rows(task, examples, lm, bare, ANSWERS)  # type: ignore[arg-type]
    assert hacked["answer_only"] == 1
    assert is_hacked(hacked, honest)
    assert is_hacked(first, honest)
    assert not is_hacked(honest, honest)


class Cut(Exception):
    pass


class PowerCut(TrainingCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            raise Cut


def recipe(output: Path) -> RunConfig:
    static = {"block_size": 4, "denoising_steps": 2, "remasking": "low_confidence_static"}
    shared: dict[str, Any] = {
        "rounds": 2, "steps": 4, "advantage": {"group_size": 4, "speed_weight": 0.0},
        "student_decoding": static, "objective": {"kl_weight": 0.1},
    }  # fmt: skip
    return RunConfig(
        output=output,
        data=DataConfig(num_prompts=8),
        rollout=RolloutConfig(DecodingConfig(max_new_tokens=96)),
        methods={
            "first": MethodConfig("naive_td", steps=1),
            "labelled": MethodConfig("lightningrl", start="first", **shared),
            "free": MethodConfig("rtd_rl", **shared),
        },
        training=TrainingConfig(
            steps=2,
            batch_size=8,
            micro_batch_size=4,
            learning_rate=1e-4,
            warmup_steps=0,
            save_seconds=0,
            logging_steps=1,
        ),
    )


def train(config: RunConfig, name: str) -> dict[str, Any]:
    output = config.output / "checkpoints" / name
    train_student(config, config.methods[name], config.training, output, progress=False)
    return json.loads((output / "provenance.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """All three students, without interruption."""
    config = recipe(tmp_path_factory.mktemp("rl") / "run")
    check_recipe(config)
    record_trajectories(config, progress=False)
    for name in config.methods:
        train(config, name)
    return config


def test_rounds_reward_the_students_own_responses(trained: RunConfig) -> None:
    first, labelled, free = (train(trained, name) for name in trained.methods)
    own = trained.output / "rounds" / "labelled"
    stores = [TrajectoryStore.open(own / f"trajectories{n}") for n in (0, 1)]
    for store, weights in zip(
        stores,
        (
            first["weights_hash"],
            json.loads((own / "round0/provenance.json").read_text())["weights_hash"],
        ),
        strict=True,
    ):
        assert store.manifest.weights_hash == weights
        assert store.manifest.decoding["temperature"] == 1
        assert store.manifest.decoding["denoising_steps"] == 2
        ids = [t.prompt_id for t in store.read()]
        # Four responses to each of four prompts: what two steps of eight sequences read.
        assert [name.rpartition("#")[2] for name in ids] == ["0", "1", "2", "3"] * 4
    prompts = [{t.prompt_id.rpartition("#")[0] for t in store.read()} for store in stores]
    assert len(prompts[0]) == len(prompts[1]) == 4
    assert not prompts[0] & prompts[1]
    # Earlier rounds leave their provenance only.
    assert [path.name for path in (own / "round0").iterdir()] == ["provenance.json"]
    record = json.loads((own / "round0" / "provenance.json").read_text())
    assert record["config"]["training"]["block_sizes"] == [4]
    assert record["log"][-1].keys() >= {"ratio", "clip_share", "kl", "entropy"}
    # Every round is logged, however few its steps; steps count on from round to round.
    steps = [row["step"] for row in labelled["log"]]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == labelled["optimizer_steps"] - first["optimizer_steps"]
    # Costs add up, with those of the student that it started from.
    last = labelled["tokens_decoded"] - first["tokens_decoded"] - record["tokens_decoded"]
    assert last == sum(t.num_response_tokens for t in stores[1].read())
    assert labelled["optimizer_steps"] > first["optimizer_steps"] == 1
    assert labelled["tokens_seen"] > first["tokens_seen"] + record["tokens_seen"]
    # Without labels the teacher's answers to a round's prompts are part of the cost.
    decoded = TrajectoryStore.open(trained.output / "rounds" / "free" / "trajectories0").read()
    teacher = TrajectoryStore.open(trained.output / "trajectories").read()[:4]
    found = json.loads((trained.output / "rounds/free/round0/provenance.json").read_text())
    assert found["tokens_decoded"] == sum(t.num_response_tokens for t in (*decoded, *teacher))
    assert free["rounds"] == labelled["rounds"] == 2


def test_a_start_decodes_in_the_first_round_of_distillation(
    trained: RunConfig, tmp_path: Path
) -> None:
    few = MethodConfig("rtd", start="first", rounds=2, student_decoding={"denoising_steps": 1})
    one = MethodConfig("naive_td", start="first")
    methods = trained.methods | {"few": few, "one": one}
    config = replace(trained, output=tmp_path / "run", methods=methods)
    for name in ("trajectories", "checkpoints/first"):
        shutil.copytree(trained.output / name, config.output / name)
    check_recipe(config)
    for name in ("few", "one"):
        train(config, name)
        num = len([*(config.output / "rounds" / name).glob("trajectories*")])
        assert student_work(config, methods[name])["prompt"] == 8 * num
    read = [TrajectoryStore.open(config.output / "rounds/few" / f"trajectories{n}") for n in (0, 1)]
    stores = [store.manifest for store in read]
    first = json.loads((config.output / "checkpoints/first/provenance.json").read_text())
    # The teacher's are decoded for it too, since it is verified by them.
    teacher = TrajectoryStore.open(config.output / "trajectories").read()
    decoded = [num_tokens(own) for own in (teacher, *(store.read() for store in read))]
    record = json.loads((config.output / "checkpoints/few/provenance.json").read_text())
    assert record["tokens_decoded"] == first["tokens_decoded"] + sum(decoded)
    assert stores[0].weights_hash == first["weights_hash"] != stores[1].weights_hash
    assert [store.decoding["denoising_steps"] for store in stores] == [1, 1]
    # A single round trains on what the teacher decoded, wherever the student starts.
    assert not (config.output / "rounds/one").joinpath("trajectories0").exists()


@pytest.mark.parametrize("place", ["inside", "between"])
def test_a_killed_student_resumes_bit_for_bit(
    trained: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    config = replace(trained, output=tmp_path / "run")
    for name in ("trajectories", "checkpoints/first"):
        shutil.copytree(trained.output / name, config.output / name)
    distill, rows = rounds.distill, rounds.reinforced_rows

    def cut(*args: Any, **kwargs: Any) -> Any:
        directory: Path = args[4]
        calls = [PowerCut()] if place == "inside" and directory.name == "round1" else []
        return distill(*args, **{**kwargs, "callbacks": calls})

    def stop(*args: Any, **kwargs: Any) -> Any:
        found = rows(*args, **kwargs)
        if place == "between" and args[4] > 0:
            raise Cut
        return found

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "distill", cut)
        patch.setattr(rounds, "reinforced_rows", stop)
        with pytest.raises(Cut):
            train(config, "labelled")
    again, whole = train(config, "labelled"), train(trained, "labelled")
    for key in ("weights_hash", "optimizer_steps", "tokens_seen", "tokens_decoded"):
        assert again[key] == whole[key]
    students = [run.output / "checkpoints" / "labelled" for run in (config, trained)]
    assert hash_weights(students[0]) == hash_weights(students[1])


def test_a_round_without_signal_leaves_the_student_as_it_is(
    trained: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut after a few tokens, no response is right. The first of the rounds has a step more."""
    method = replace(trained.methods["labelled"], start=None, steps=3, student_decoding={
        "block_size": 8, "denoising_steps": 1, "max_new_tokens": 8,
    })  # fmt: skip
    config = replace(trained, output=tmp_path / "run", methods={"labelled": method})
    record = train(config, "labelled")
    assert record["optimizer_steps"] == record["tokens_seen"] == 0
    assert record["tokens_decoded"] > 0
    student, own = (config.output / name / "labelled" for name in ("checkpoints", "rounds"))
    assert hash_weights(student) == hash_weights(BUILT_IN["mini_teacher"])
    stores = [TrajectoryStore.open(own / f"trajectories{n}").read() for n in (0, 1)]
    prompts = [{t.prompt_id.rpartition("#")[0] for t in store} for store in stores]
    assert [*map(len, prompts)] == [4, 2]
    assert not prompts[0] & prompts[1]
    assert "round 2: 0.0% right" in capsys.readouterr().err
    # One that is deleted is trained anew.
    shutil.rmtree(student)
    assert train(config, "labelled")["tokens_decoded"] == record["tokens_decoded"]


def test_watched_rounds_share_one_log_and_one_best(trained: RunConfig, tmp_path: Path) -> None:
    watch = WatchConfig(every=3, num_problems=2, decoding=DecodingConfig(max_new_tokens=96))
    method = replace(trained.methods["labelled"], start=None)
    config = replace(trained, output=tmp_path / "run", methods={"labelled": method}, watch=watch)
    record = train(config, "labelled")
    own = config.output / "rounds" / "labelled"
    steps = [json.loads(line)["step"] for line in (own / "watch.jsonl").read_text().splitlines()]
    wanted = {3, record["optimizer_steps"]} & set(range(record["optimizer_steps"] + 1))
    assert steps == sorted(wanted)
    assert from_pretrained(own / "best").mask_token_id > 0


def test_students_wait_for_their_start(
    trained: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three workers none begins with a student whose start is still in training."""
    config = replace(trained, output=tmp_path / "run", num_workers=3)
    began: list[str] = []

    def train_slowly(config: RunConfig, unit: Unit, title: str, *, progress: bool) -> None:
        began.append(unit.method)
        checkpoints = config.output / "checkpoints"
        if unit.method == "labelled":
            assert is_trained(checkpoints / "first")
        time.sleep(0.2)
        (checkpoints / unit.path).mkdir(parents=True)
        (checkpoints / unit.path / "provenance.json").write_text("{}")

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    monkeypatch.setattr(units, "pool", lambda num, hear: ThreadPoolExecutor(num))
    monkeypatch.setattr(units, "_record_part", nothing)
    monkeypatch.setattr(units, "evaluate_unit", nothing)
    monkeypatch.setattr(units, "train_unit", train_slowly)
    wanted = [Unit(name, 0, Path(name)) for name in config.methods]
    done = list(units.finished(config, wanted, (), progress=False))
    assert sorted(unit.method for unit in done) == sorted(config.methods)
    assert began[-1] == "labelled"
