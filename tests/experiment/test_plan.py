"""What --dry-run says, for every recipe that ships."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from t3d.cli.main import main
from t3d.evaluation.config import WatchConfig
from t3d.experiment.plan import plan, shrink
from t3d.experiment.recipe import CompareConfig, DataConfig, RunConfig
from t3d.experiment.run import run
from t3d.models import from_pretrained
from t3d.training.config import LoraSettings, MethodConfig, TrainingConfig
from t3d.training.lora import Adapter

RECIPES = sorted((Path(__file__).parents[2] / "t3d/recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_says_what_it_will_do(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Its first lines name the command that it is for.
    command = re.search(r"t3d (run|compare|pretrain|eval) ", path.read_text(encoding="utf-8"))
    assert command is not None
    monkeypatch.chdir(tmp_path)
    # Decoding settings alone do nothing that could be told beforehand.
    arguments = (
        ["eval", "--config", str(path), "--print_config"]
        if command[1] == "eval"
        else [command[1], str(path), "--dry-run"]
    )
    if command[1] == "eval":
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert "settings:" in capsys.readouterr().out
    else:
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "parameters" in out
        assert "optimizer steps" in out
    assert list(tmp_path.iterdir()) == []


def as_dict(config: RunConfig, rates: Path | None = None) -> dict[tuple[str, str], str]:
    return {(stage, what): value for stage, what, value in plan(config, rates)}


def test_parameters_are_those_of_the_loaded_model() -> None:
    number = from_pretrained("mini_teacher").model.num_parameters()
    assert as_dict(RunConfig())["model", "parameters"] == f"{number:,}"


@pytest.mark.parametrize(("key", "value"), [("bos_token_id", "x"), ("initializer_range", 202)])
def test_a_damaged_checkpoint_is_refused_as_the_run_refuses_it(
    key: str, value: Any, tmp_path: Path
) -> None:
    from_pretrained("mini_teacher").save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    config = RunConfig(model=str(tmp_path / "model"), output=tmp_path / "run")
    with pytest.raises(ValueError, match=f"config.json: .*{key}") as planned:
        plan(config)
    with pytest.raises(ValueError, match=re.escape(str(planned.value))):
        run(config)


def test_a_model_that_is_not_here_is_unknown_without_a_shape() -> None:
    rows = as_dict(RunConfig(model="JetLM/SDAR-4B-Chat"))
    assert rows["model", "parameters"] == "unknown"
    assert rows["train", "memory of weights, gradients and moments"] == "unknown"
    assert rows["rollout", "memory of keys and values"] == "unknown"


def test_activations_are_unknown_where_views_are_as_many_as_steps() -> None:
    for name, is_known in (("naive_td", True), ("rtd_rl", False)):
        methods = {"redi": MethodConfig("redi"), name: MethodConfig(name)}
        told = as_dict(RunConfig(methods=methods))["train", "memory of activations"]
        assert (told != "unknown") == is_known


def test_every_frozen_copy_takes_memory() -> None:
    # 864,128 parameters in float32: weights, gradients, two moments; a reference on top.
    sizes = [as_dict(RunConfig(methods={"m": MethodConfig(name)})) for name in ("naive_td", "t3d")]
    assert [s["train", "memory of weights, gradients and moments"] for s in sizes] == [
        "13.2 MiB a process",
        "16.5 MiB a process",
    ]


def test_memory_follows_adapters_and_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    key = ("train", "memory of weights, gradients and moments")
    methods = {"m": MethodConfig("t3d")}

    def told(**training: Any) -> str:
        return as_dict(RunConfig(methods=methods, training=TrainingConfig(**training)))[key]

    lora = LoraSettings(rank=4)
    lm = from_pretrained("mini_teacher")
    num = sum(weight.numel() for weight in Adapter(lm, lora, 0).weights.values())
    base = sum(p.numel() for n, p in lm.model.named_parameters() if "lora" not in n)
    # The base once; of the adapter weights, gradients, two moments and the reference's copy.
    assert told(lora=lora) == f"{4 * (base + 5 * num) / 2**20:.1f} MiB a process"
    assert told(sharding="full") == "16.5 MiB over all processes"
    monkeypatch.setattr("t3d.experiment.plan.launched", lambda: (0, 4))
    assert told(sharding="full") == "4.1 MiB a process"
    monkeypatch.setattr("t3d.experiment.rounds.training_arguments", lambda *args: None)
    assert told(trainer={"deepspeed": "zero.json"}) == "unknown"


def test_times_come_from_measured_rates_of_the_same_model(tmp_path: Path) -> None:
    row = {"engine": "t3d", "model": "mini_teacher", "device": "a", "denoising_steps": 4}
    slower = row | {"tokens_per_second": 5.0, "device": "b"}
    other = row | {"tokens_per_second": 1e9, "model": "another"}
    rows = [row | {"tokens_per_second": 10.0}, slower, other]
    (tmp_path / "decode.json").write_text(json.dumps({"rows": rows}))
    config = RunConfig(data=DataConfig(num_prompts=3600))
    # 3600 prompts of 256 tokens at 10 tokens a second.
    table = as_dict(config, tmp_path)
    assert table["rollout", "time"] == "25.6 hours at most on a"
    assert table["train", "time of a model"] == "unknown"
    with pytest.raises(ValueError, match="neither decode.json nor train.json"):
        plan(config, tmp_path / "empty")


def test_a_shrunk_comparison_keeps_methods_and_has_an_output_of_its_own() -> None:
    config = CompareConfig(
        methods={
            "naive_td": MethodConfig(
                "naive_td", num_sequences=1000, decoding={"max_new_tokens": 9000}
            )
        },
        output=Path("runs/x"),
        watch=WatchConfig(every=900, num_problems=900),
    )
    small = shrink(config)
    assert small.output == Path("runs/x-smoke")
    assert small.seeds == (0,)
    assert small.methods == {"naive_td": MethodConfig("naive_td")}
    assert small.data.num_prompts <= 8
    assert small.watch is not None
    assert small.watch.num_problems <= 8
    assert small.watch.every < small.training.steps
    assert [s.denoising_steps for s in small.evaluation.settings] == [
        s.denoising_steps for s in config.evaluation.settings
    ]


@pytest.mark.parametrize(
    ("task", "domain", "message"),
    [
        ("mbpp", "math", "has lines that ask for final answers, but mbpp for programs; give"),
        ("math500", "code", "has lines that ask for programs, but math500 for final answers; give"),
        ("mini_gsm", "code", "has lines that ask for programs, but mini_gsm for final answers"),
        ("mbpp", "code", None),
        ("[math500, mbpp]", "code", None),
    ],
)
def test_prompts_that_ask_for_something_else_than_the_task_are_refused(
    task: str,
    domain: str,
    message: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts, recipe = tmp_path / "mine.jsonl", tmp_path / "recipe.yaml"
    prompts.write_text(json.dumps({"question": "Add.", "domain": domain}))
    recipe.write_text(f"task: {task}\ndata: {{prompts: {prompts}}}\n")
    assert main(["run", str(recipe), "--dry-run"]) == (0 if message is None else 1)
    assert (message or "") in capsys.readouterr().err


def test_a_method_with_steps_of_its_own_says_them() -> None:
    methods = {"long": MethodConfig("rtd", steps=160), "shared": MethodConfig("rtd")}
    rows = as_dict(RunConfig(methods=methods, training=TrainingConfig(steps=20)))
    assert rows["train", "optimizer steps"] == "20 of 64 sequences"
    assert rows["train", "optimizer steps of long"] == "160 of 64 sequences"
    assert ("train", "optimizer steps of shared") not in rows
