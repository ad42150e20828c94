"""The commands, called in this process; and what importing t3d costs."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import t3d as package
from t3d.cli.commands import COMMANDS
from t3d.core.store import TrajectoryStore
from t3d.experiment.recipe import RunConfig
from t3d.models import from_pretrained, wrap
from t3d.models.tokenizers import BUILT_IN
from t3d.testing import tiny
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
SHORT = ("--decoding.max_new_tokens", 8)


LIGHT = """
import json, sys
from t3d.cli.main import main
for call in json.loads(sys.argv[1]):
    try:
        main(call)
    except SystemExit:
        pass
    heavy = {"torch", "transformers", "pyarrow"} & set(sys.modules)
    assert not heavy, (call, heavy)
"""
RECIPES = sorted((ROOT / "t3d/recipes").glob("*.yaml"))


def printing_call(path: Path) -> list[str]:
    """A call that shows what a recipe says."""
    keys = set(yaml.safe_load(path.read_text()))
    call = ["pretrain", path.stem, "--output", "x"]
    if "methods" in keys:
        call = ["compare" if "seeds" in keys else "run", path.stem]
    elif "settings" in keys:
        call = ["eval", "--config", path.stem, "--model", "x", "--output", "x"]
    return [*call, "--print_config"]


def test_help_and_wrong_calls_and_reports_import_no_torch(tmp_path: Path) -> None:
    shutil.copy(ROOT / "benchmarks/compare.json", tmp_path / "results.json")
    (tmp_path / "theirs.json").write_text("[]")
    run, output = str(tmp_path), str(tmp_path / "output")
    calls = [["--help"], ["--version"], ["nosuch"], [], ["run"], ["run", "nosuch"], ["generate"]]
    calls += [[name, "--help"] for name in COMMANDS] + [printing_call(path) for path in RECIPES]
    calls += [["run", "demo", "--nosuch", "1"], ["train", "--model", "m"], ["eval", "--mod", "m"]]
    calls += [["run", "demo", "--rollout.decoding.block_size", "0"]]
    calls += [["report", run, "--output", output], ["frontier", run, "--output", output]]
    source, written = str(tmp_path / "theirs.json"), str(tmp_path / "ours.jsonl")
    calls += [["data", "convert", source, "--output", written, "--dataset", "math"]]
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIGHT, json.dumps(calls)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    for name, command in COMMANDS.items():
        line = rf"^ +{name} +{re.escape(command.summary)}$"
        assert re.search(line, process.stdout, re.MULTILINE)


def test_version(t3d: Run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == package.__version__
    assert t3d("--version").out == f"t3d {package.__version__}\n"


def test_the_public_names_resolve() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        package.nosuch  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(t3d: Run, name: str) -> None:
    outcome = t3d(name, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    text = outcome.out
    assert COMMANDS[name].summary in text
    example = re.search(rf"^  t3d {name} .*$", text, re.MULTILINE)
    assert example
    # No field without an explanation, but for those whose name says it all.
    assert "<class" not in text
    options = re.findall(r"^  (--[\w.]+)", text, re.MULTILINE)
    assert len(options) == len(set(options))


def test_every_option_of_an_example_exists(t3d: Run) -> None:
    """The calls in the help, joined over their lines."""
    for name in COMMANDS:
        text = t3d(name, "--help").out
        known = set(re.findall(r"--[\w.]+", text.split("options:")[1]))
        calls = re.findall(rf"^  (t3d {name} .*(?:\n      .*)*)", text.split("options:")[0], re.M)
        assert calls
        for option in re.findall(r"--([\w.]+)", " ".join(calls)):
            parents = {f"--{option}", f"--{option.rpartition('.')[0]}"}
            assert known & parents, (name, option)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_accepted_by_name_and_by_path(t3d: Run, path: Path) -> None:
    call = printing_call(path)
    outcome = t3d(*call)
    assert outcome.code == 0, outcome.err
    by_path = t3d(*(str(path) if word == path.stem else word for word in call))
    assert by_path.out == outcome.out


def test_printed_configuration_is_a_recipe(recipe_file: Path, tmp_path: Path, t3d: Run) -> None:
    override = ("--training.steps", 9, "--methods.t3d.objective", "{beta: 0.3}")
    printed = t3d("run", recipe_file, *override, "--print_config").out
    document = yaml.safe_load(printed)
    assert document["training"]["steps"] == 9
    assert document["methods"]["t3d"]["objective"] == {"beta": 0.3}
    assert document["data"]["num_prompts"] == 16
    assert set(document) == {
        *RunConfig.__dataclass_fields__,
        "progress",
        "dry_run",
        "rates",
        "smoke",
    }
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert t3d("run", again, "--print_config").out == printed


def test_generate(
    checkpoint: Path, t3d: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ("generate", "--model", checkpoint, *SHORT)
    plain = t3d(*command, "How many?")
    assert (plain.code, plain.err) == (0, "")
    lm = from_pretrained(checkpoint)
    config = package.DecodingConfig(max_new_tokens=8)
    (completion,) = package.generate(lm, ["How many?"], config)
    assert plain.out == lm.decode(completion.token_ids) + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("How many?\n"))
    assert t3d(*command, "-").out == plain.out
    shown = t3d(*command, "--show_steps", "true", "How many?")
    assert shown.out == plain.out
    assert f"{completion.passes.total} passes for" in " ".join(shown.err.split())
    # The default of 256 new tokens is cut to what the model has positions for.
    assert t3d("generate", "--model", checkpoint, "How many?").code == 0
    options = tmp_path / "options.yaml"
    options.write_text("decoding: {max_new_tokens: 8}\n")
    from_file = ("generate", "--config", options, "--model", checkpoint, "How many?")
    assert t3d(*from_file).out == plain.out


def test_generate_shows_a_problem_of_a_task_as_eval_grades_it(
    checkpoint: Path, tmp_path: Path, t3d: Run
) -> None:
    (tmp_path / "own.jsonl").write_text(
        '{"question": "How many?", "answer": 3}\n{"question": "Why?", "answer": 4}\n'
    )
    one = ["--decoding.denoising_steps", 1, "--decoding.temperature", 1.0, *SHORT]
    for task in ("mini_gsm", str(tmp_path / "own.jsonl")):
        output = tmp_path / Path(task).stem
        settings = "[{denoising_steps: 1, temperature: 1.0, max_new_tokens: 8}]"
        asked = ("--model", checkpoint, "--task", task)
        t3d("eval", *asked, "--num_problems", 2, "--settings", settings, "--output", output)
        samples = pq.read_table(output / "samples.parquet").to_pylist()
        problems = package.get_task(task).examples("test", 2)
        for index, (problem, sample) in enumerate(zip(problems, samples, strict=True)):
            shown = t3d("generate", *asked, *one, *(["--index", index] if index else []))
            assert (shown.code, shown.err) == (0, "")
            right = sample["correct"]
            assert shown.out == (
                f"question: {problem.question}\nresponse: {sample['output']}\n"
                f"gold:     {problem.answer}\n"
                f"verdict:  {'right' if right else 'wrong (no final answer)'}\n"
            )
        beyond = t3d("generate", *asked, "--index", 2)
        assert (beyond.code == 0) == (task == "mini_gsm")
    assert "own.jsonl: no problem 2; its split 'test' has 2, from 0 on" in beyond.err


def test_the_small_model_answers_its_problems_and_warns_of_others(t3d: Run, tmp_path: Path) -> None:
    for task in ("mini_gsm", "mini_week"):
        problem = package.get_task(task).examples("test", 1)[0]
        shown = t3d("generate", "--task", task)
        assert (shown.code, shown.err) == (0, "")
        assert shown.out.endswith(f"gold:     {problem.answer}\nverdict:  right\n")
        assert t3d("generate", *SHORT, problem.question).err == ""
    # A student of it knows no more.
    student = tmp_path / "student"
    shutil.copytree(BUILT_IN["mini_teacher"], student)
    record = json.loads((student / "provenance.json").read_text()) | {"model": "mini_teacher"}
    del record["base"]
    (student / "provenance.json").write_text(json.dumps(record | {"config": {}}))
    for model in ("mini_teacher", student):
        foreign = t3d("generate", "--model", model, *SHORT, "What is the capital of France?")
        assert foreign.code == 0
        assert foreign.err.count("\n") == 1
        assert f"{model} knows generated problems of mini_gsm and mini_week only" in foreign.err


def test_a_question_that_looks_like_a_number(checkpoint: Path, t3d: Run) -> None:
    assert t3d("generate", "--model", checkpoint, *SHORT, "5").code == 0


def test_rollout_of_own_prompts(checkpoint: Path, tmp_path: Path, t3d: Run) -> None:
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"question": "How many?", "id": "a", "answer": 3}\n{"prompt": "Why?"}\n')
    output = tmp_path / "store"
    command = ("rollout", "--model", checkpoint, "--prompts", prompts, "--output", output, *SHORT)
    outcome = t3d(*command)
    assert (outcome.code, outcome.out) == (0, f"{output}: 2 trajectories\n")
    assert "rollout: 2 prompts in 0:00:0" in outcome.err
    found = TrajectoryStore.open(output).read()
    assert [(row.prompt_id, row.answer) for row in found] == [("a", "3"), ("mine/2", None)]
    # The same again decodes nothing; another seed is another store.
    assert t3d(*command, "--progress", "false").err == ""
    other = t3d(*command, "--seed", 1)
    assert other.code == 1
    assert "was made with seed = 0, not 1" in other.err


def test_train_then_evaluate(checkpoint: Path, store: Path, tmp_path: Path, t3d: Run) -> None:
    student, output = tmp_path / "student", tmp_path / "evaluation"
    command = ("train", "--model", checkpoint, "--trajectories", store, "--method", "t3d")
    size = ("--training.batch_size", 8, "--training.micro_batch_size", 8, "--training.steps", 2)
    command = (*command, "--output", student, "--objective.beta", 0.2, *size)
    outcome = t3d(*command, "--progress", "false")
    assert (outcome.code, outcome.out) == (0, f"{student}\n")
    record = json.loads((student / "provenance.json").read_text())
    assert record["config"]["method"]["objective"] == {"beta": 0.2}
    assert record["optimizer_steps"] == 2
    # The same again trains nothing, and other settings are refused.
    before = (student / "model.safetensors").stat().st_mtime_ns
    assert t3d(*command).err == ""
    assert (student / "model.safetensors").stat().st_mtime_ns == before
    other = t3d(*command, "--objective.beta", 0.3)
    assert other.code == 1
    assert "holds what another recipe made (method differ)" in other.err

    command = ("eval", "--model", student, "--num_problems", 3, "--output", output)
    one = "[{denoising_steps: 1, max_new_tokens: 8}]"
    two = "[{denoising_steps: 1, max_new_tokens: 8}, {denoising_steps: 2, max_new_tokens: 8}]"
    first = t3d(*command, "--settings", one)
    assert first.code == 0, first.err
    assert first.out.splitlines()[-2:] == [f"{output}/results.json", f"{output}/samples.parquet"]
    (row,) = json.loads((output / "results.json").read_text())["rows"]
    assert (row["method"], row["optimizer_steps"], row["n"]) == ("student", 2, 3)
    # A finished setting is read back, its timings with it.
    second = t3d(*command, "--settings", two)
    assert second.code == 0, second.err
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert rows[0] == row
    assert [row["denoising_steps"] for row in rows] == [1, 2]
    other = t3d(*command, "--num_problems", 4, "--settings", one)
    assert other.code == 1
    assert "holds what another recipe made (limit, problems differ)" in other.err
    named = t3d("eval", "--model", checkpoint, "--num_problems", 2, "--settings", one,
                "--name", "mine", "--output", tmp_path / "named")  # fmt: skip
    assert named.code == 0, named.err
    (row,) = json.loads((tmp_path / "named" / "results.json").read_text())["rows"]
    assert (row["method"], row["optimizer_steps"]) == ("mine", 0)


def test_pretrain(tmp_path: Path, t3d: Run) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "model"
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    training = {"steps": 2, "batch_size": 8, "micro_batch_size": 8}
    config = {"num_examples": 32, "vocab_size": 300, "shape": shape, "training": training}
    recipe.write_text(yaml.safe_dump(config))
    outcome = t3d("pretrain", recipe, "--output", output, "--progress", "false")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{output}\n"
    assert from_pretrained(output).model.config.hidden_size == 16
    before = (output / "model.safetensors").stat().st_mtime_ns
    assert t3d("pretrain", recipe, "--output", output).code == 0
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    assert t3d("pretrain", recipe, "--output", output, "--vocab_size", 310).code == 1


def test_a_store_of_another_vocabulary(
    checkpoint: Path, store: Path, tmp_path: Path, t3d: Run
) -> None:
    lm = from_pretrained(checkpoint)
    # A tokenizer of bytes alone has fewer tokens than the store's.
    from t3d.tasks.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a"], vocab_size=261)
    assert len(tokenizer) < lm.model.config.vocab_size
    wrap(tiny(vocab_size=len(tokenizer)), tokenizer, "small").save(tmp_path / "small")
    size = ("--training.batch_size", 8, "--training.micro_batch_size", 8)
    command = ("train", "--model", tmp_path / "small", "--trajectories", store, *size)
    outcome = t3d(*command, "--method", "t3d", "--output", tmp_path / "student")
    assert outcome.code == 1
    assert f"has token ids beyond the {len(tokenizer)} of" in outcome.err
    assert not (tmp_path / "student").exists()


def test_analyze_measures_teacher_and_students(
    checkpoint: Path, store: Path, tmp_path: Path, t3d: Run
) -> None:
    options = ["--num_states", 4, "--num_samples", 4, "--progress", "false"]
    options += ["--noise_levels", "[1, 0.5]"]
    shutil.copytree(checkpoint, student := tmp_path / "t3d" / "seed0")
    models = ["--teacher", checkpoint, "--students", f"[{student}]"]
    output = tmp_path / "analysis"
    outcome = t3d("analyze", "--trajectories", store, "--output", output, *models, *options)
    assert outcome.code == 0, outcome.err
    analysis = json.loads((output / "analysis.json").read_text())["analysis"]
    assert [level["noise_level"] for level in analysis["levels"]] == [1.0, 0.5, None]
    for level in analysis["levels"]:
        assert [row["model"] for row in level["measurements"]] == [checkpoint.name, "t3d/seed0"]
        # The student is the teacher, measured on the same states with the same draws.
        assert level["differences"][0]["on_policy_risk"]["mean"] == 0
    assert "total correlation" in (output / "analysis.md").read_text()
