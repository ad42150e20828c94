"""Whatever cannot be used: one sentence on stderr, an exit code, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome, Run


def assert_refused(outcome: Outcome, code: int, *parts: str) -> None:
    """One line on stderr with all the parts, nothing on stdout."""
    assert outcome.out == ""
    assert outcome.code == code, outcome.err
    assert re.fullmatch(r"t3d[ a-z]*: error: [^\n]+\n", outcome.err), outcome.err
    for part in parts:
        assert part in outcome.err


RECIPES = [
    ("tassk: mini_gsm", "option 'tassk' is not accepted; did you mean task?"),
    ("nonsense: 1", "option 'nonsense' is not accepted"),
    ("training: {step: 1}", "group 'training' does not accept option 'step'"),
    ("methods: {a: {method: t3d, lambda: 1}}", "methods: option 'lambda' is not accepted"),
    ("methods: {a: {}}", "methods: the following arguments are required: method"),
    ("evaluation: {settings: [{blocks: 4}]}", "settings: option 'blocks' is not accepted"),
    ("training: {steps: many}", "training.steps: expected int, got many"),
    ("data: 200", "data: expected keys, got 200"),
    ("rollout: 200", "rollout: expected keys, got 200"),
    ("rollout: {decoding: 2}", "expected keys"),
    ("methods: {a: 2}", "methods: expected MethodConfig, got 2"),
    ("model: 3", "model: expected str, got 3"),
    ("data: {split: tset}", "data.split: expected Literal['train', 'dev', 'test'], got tset"),
    ("training: [1", "while parsing a flow sequence"),
    ("- model", "unexpected config: - model"),
    ("1: 2", "recipe.yaml, line 1: the key 1 is no text; put it in quotes"),
    ("methods: {null: {method: t3d}}", "line 1: the key null is no text"),
    ("? [1, 2]\n: 3", "line 1: the key that is a list is no text"),
    ("training: {trainer: &a {x: *a}}", "stands for more than 10000 values, with aliases"),
    (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "\n".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]" for m, n in pairwise("abcdefghi")),
        "stands for more than 10000 values",
    ),
    (f"model: {'[' * 5000}", "nest"),
    ("model: \xff", "recipe.yaml: not UTF-8 text"),
    (f"model: {'x' * 2**18}", "recipe.yaml: larger than 262144 bytes"),
    ("training: {lora: 3}", "training.lora: expected LoraSettings or null, got 3"),
    ("rollout: {decoding: {window: x}}", "rollout.decoding.window: expected int or null, got x"),
]


@pytest.mark.parametrize(("text", "part"), RECIPES)
def test_wrong_recipes(tmp_path: Path, t3d: Run, text: str, part: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text + "\n", encoding="latin-1")
    outcome = t3d("run", path, "--output", tmp_path / "run")
    assert_refused(outcome, 2, "t3d run: error: ", part, "`t3d run --help`")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_no_file(tmp_path: Path, t3d: Run) -> None:
    path = tmp_path / "recipe.yaml"
    os.mkfifo(path)
    assert_refused(t3d("run", path), 2, f"{path}: no regular file")
    assert_refused(t3d("eval", "--config", path), 2, f"{path}: no regular file")


CALLS = [
    (("eval", "--model", "m", "--output", "x", "--num_workers=1025"), 1, "must lie in [1, 1024]"),
    (
        ("bench", "decode", "--model", "mini_teacher", "--output", "/proc/x/y"),
        1,
        "/proc/x/y: no directory can be made there",
    ),
    (
        ("bench", "train", "--model", "mini_teacher", "--output", "/proc/x/y"),
        1,
        "/proc/x/y: no directory can be made there",
    ),
    (("run", "demo", "--methods", "{1: {method: t3d}}"), 2, "--methods, line 1: the key 1 is no"),
    (("run", "demo", "--training.lora", "{rank: 0}"), 1, "lora: rank must be at least 1, got 0"),
    (
        ("rollout", "--model", "m", "--output", "x", "--num_prompts=-1"),
        1,
        "num_prompts must not be negative",
    ),
    (
        ("rollout", "--model", "m", "--output", "x", f"--num_prompts={10**20}"),
        1,
        "num_prompts: numbers must lie",
    ),
    (("eval", "--model", "m", "--output", "x", f"--num_workers={10**20}"), 1, "within 64 bits"),
    (
        ("eval", "--model", "m", "--output", "x", f"--num_problems={10**10}"),
        1,
        "problems of mini_gsm must lie in [0, 10000000], got 10000000000",
    ),
    (
        ("rollout", "--model", "mini_teacher", "--output", "x", "--num_prompts=2"),
        1,
        "max_new_tokens=256 leaves no room for a prompt in the 256 positions of mini_teacher",
    ),
    (
        ("convert", "package:../../etc", "--output", "x"),
        1,
        "package:../../etc: no name of a Python package; name a folder by its path",
    ),
    (("run", "demo", "--training.seed", str(10**20)), 1, "seed must lie in"),
    (("run", "no.yaml"), 2, "no.yaml"),
    (("run",), 2, "the recipe comes first: t3d run RECIPE"),
    (("run", "--output", "x", "recipe.yaml"), 2, "the recipe comes first"),
    (("rollout", "--model", "m"), 2, "arguments are required: output"),
    (("rollout", "--model", "m", "--output", "x", "--nmu", "3"), 2, "--nmu 3"),
    (("train", "--model", "m", "--output", "x", "--method", "t3d"), 2, "trajectories"),
    (
        ("train", "--model=m", "--output=x", "--method=t3d", "--trajectories=s", "--start=y"),
        1,
        "start: --model says where the student starts; leave --start out",
    ),
    (("generate",), 1, "give a QUESTION, or"),
    (("generate", "--task", "mini_gsm", "How many?"), 1, "not both"),
    (("generate", "--task", "mini_gms"), 1, "unknown task 'mini_gms'"),
    (("generate", "--task", "mini_gsm", "--index", "-1"), 1, "index must be at least 0"),
    (("report",), 2, "runs"),
    (("report", "nowhere"), 1, "nowhere/results.json: no such results file"),
    (("generate", "--model", "no/where/at/all", "q"), 1, "no/where/at/all: no such checkpoint"),
    (("generate", "--decoding.block_size", "0", "q"), 1, "block_size must be at least 1"),
    (
        ("generate", "--decoding.denoising_steps", "5", "q"),
        1,
        "denoising_steps must be at most block_size=4",
    ),
    (("generate", " "), 1, "the question is empty"),
    (
        ("eval", "--model", "mini_teacher", "--output", "x", "--num_problems", "-3"),
        1,
        "num_problems must be at",
    ),
    # Of an option's name all is needed.
    (("generate", "--decoding.denoising_step", "2", "q"), 2, "--decoding.denoising_step"),
    (("eval", "--mod", "x", "--output", "y"), 2, "--mod x"),
    (("run", "demo", "--training.step", "2"), 2, "--training.step"),
]


@pytest.mark.parametrize(("call", "code", "part"), CALLS)
def test_wrong_calls(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    t3d: Run,
    call: tuple[str, ...],
    code: int,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(t3d(*call), code, part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (("runx", "x.yaml"), "unknown command 'runx'; did you mean run?"),
        (("evaluate",), "unknown command 'evaluate'; did you mean eval?"),
        (("bench",), "unknown command 'bench'; did you mean bench decode or bench train?"),
        (("data", "downloadd"), "unknown command 'data'; did you mean data download or data conv"),
        (("xyz",), "unknown command 'xyz'; `t3d --help` lists them"),
        (("--nosuch",), "arguments"),
        (("run", "demmo"), "no recipe file or shipped recipe 'demmo'; did you mean demo?"),
        (("run", "xyz"), "those that ship are demo, demo_published"),
        (("eval", "--config", "sweeep"), "shipped recipe 'sweeep'; did you mean sweep?"),
        (("eval", "--config=sweeep"), "shipped recipe 'sweeep'; did you mean sweep?"),
        (("run", "demo", "--training.stesp", "3"), "stesp 3; did you mean training.steps?"),
        # What abbreviates an option is no option.
        (("eval", "--mod", "m", "--output", "x"), "unrecognized arguments: --mod m; did you mean"),
        (("generate", "--decoding.temp", "0", "q"), "--decoding.temp"),
        (("generate", "--see=3", "q"), "--see=3; did you mean seed?"),
        (("generate", "--model", "mini_techer", "q"), "did you mean mini_teacher?"),
    ],
)
def test_misspelt_names(t3d: Run, call: tuple[str, ...], meant: str) -> None:
    outcome = t3d(*call)
    assert outcome.code == (1 if "--model" in call else 2)
    assert meant in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


OVERRIDES = [
    (("--task", "nosuch"), "unknown task 'nosuch'; choose one of mini_gsm"),
    (("--methods.t3d.method", "td3"), "unknown method 'td3'; choose one of"),
    (("--methods.t3d.noiser", "{nosuch: 1}"), "method t3d: noiser: unknown key 'nosuch'"),
    (("--methods.t3d.objective", "{bta: 1}"), "method t3d: objective: unknown key 'bta'"),
    (("--methods", "{original: {method: t3d}}"), "'original' is the teacher's own name"),
    (("--methods", "{../mine: {method: t3d}}"), "'../mine' is to name a directory"),
    (("--methods", "{..: {method: t3d}}"), "'..' is to name a directory"),
    (("--methods", "{'': {method: t3d}}"), "'' is to name a directory"),
    (("--methods.t3d.decoding", "{nosuch: 1}"), "method t3d: decoding: "),
    (("--methods.t3d.decoding", "{top_p: 2}"), "method t3d: decoding: top_p must lie in (0, 1]"),
    (("--training.report_to", "[nosuch]"), "report_to: 'nosuch' is none of"),
    (("--training.report_to", "[wandb]"), "report_to: wandb is not installed; install it"),
    (("--training.batch_size", "6"), "batch_size=6 is no multiple of micro_batch_size=4"),
    (("--training.batch_size", "32"), "16 training sequences are fewer than batch_size=32"),
    (("--training.trainer", "{nosuch: 1}"), "trainer: not an argument of transformers"),
    (("--training.trainer", "{deepspeed: x.json}"), "trainer: asks for a package that is not"),
    (("--training.trainer", "{max_steps: 1}"), "trainer.max_steps is owned by t3d"),
    (("--rollout.batch_size", "0"), "batch_size must be at least 1"),
    (("--rollout.memory_share", "1.5"), "memory_share must lie in (0, 1], got 1.5"),
    (("--training.sharding", "full", "--watch", "{every: 4}"), "watch: decodes with the model"),
    (("--evaluation.batch_size", "0"), "evaluation: batch_size must be at least 1, got 0"),
    (("--evaluation.num_shown", "-1"), "evaluation: num_shown must not be negative, got -1"),
    (("--rollout.decoding.max_new_tokens", "250"), "takes at most 6 with max_new_tokens=250"),
    (("--evaluation.settings", "[]"), "evaluation: settings is empty"),
    (
        ("--evaluation.settings", "[{block_size: 2}]"),
        "denoising_steps must be at most block_size=2",
    ),
    (("--evaluation.settings", "[{top_k: 0}, {entropy_bound: 1}]"), "two settings decode as"),
    (("--data.num_problems", "0"), "no problems to evaluate"),
    (("--data.num_prompts", "0", "--methods", "{}"), "the prompt set is empty"),
    (("--model", "no/where/at/all"), "no/where/at/all: no such checkpoint directory"),
]


@pytest.mark.parametrize(("override", "part"), OVERRIDES)
def test_settings_that_do_not_fit_leave_nothing(
    recipe_file: Path, tmp_path: Path, t3d: Run, override: tuple[str, ...], part: str
) -> None:
    output = tmp_path / "run"
    call = ("run", recipe_file, "--output", output, "--progress", "false", *override)
    assert_refused(t3d(*call), 1, part)
    if override[0].startswith(("--methods", "--training")) and "--data.num_prompts" not in override:
        # What needs neither model nor problems to be seen.
        assert_refused(t3d(*call, "--dry_run"), 1, part)
    assert not output.exists()


SHAPES = [
    (("--shape.num_hidden_layers", "999999999"), "num_hidden_layers must lie in [1, 1000]"),
    (("--shape.num_attention_heads", "3"), "num_attention_heads=3 is no multiple of num_key_value"),
    (("--shape.head_dim", "7"), "shape: head_dim must be even, got 7"),
    (("--shape.hidden_size", "0"), "shape: hidden_size must be at least 1, got 0"),
    (("--num_examples", "0"), "0 training sequences are fewer than batch_size=64"),
    (("--task", "nosuch"), "unknown task 'nosuch'"),
]


@pytest.mark.parametrize(("override", "part"), SHAPES)
def test_models_that_cannot_be_built_leave_nothing(
    tmp_path: Path, t3d: Run, override: tuple[str, ...], part: str
) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "model"
    recipe.write_text("num_examples: 64\n")
    assert_refused(t3d("pretrain", recipe, "--output", output, *override), 1, part)
    assert not output.exists()


@pytest.mark.parametrize("command", ["run", "pretrain", "rollout", "train", "eval"])
def test_output_that_is_a_file(
    recipe_file: Path, checkpoint: Path, store: Path, tmp_path: Path, t3d: Run, command: str
) -> None:
    output = tmp_path / "taken"
    output.write_text("mine")
    recipe = tmp_path / "pretrain.yaml"
    recipe.write_text("num_examples: 64\n")
    short = ("--training.batch_size", 4, "--training.micro_batch_size", 4)
    calls = {
        "run": (recipe_file,),
        "pretrain": (recipe,),
        "rollout": ("--model", checkpoint, "--num_prompts", 2, "--decoding.max_new_tokens", 8),
        "train": ("--model", checkpoint, "--trajectories", store, "--method", "t3d", *short),
        "eval": ("--model", checkpoint, "--num_problems", 2),
    }
    outcome = t3d(command, *calls[command], "--output", output)
    assert_refused(outcome, 1, f"{output}: ")
    assert output.read_text() == "mine"
    assert not list(tmp_path.glob(".taken*"))


OUTPUTS: list[tuple[str, ...]] = [
    ("run", "demo"),
    ("compare", "mini_compare"),
    ("pretrain", "mini_teacher"),
    ("rollout", "--model", "mini_teacher", "--num_prompts", "2", "--decoding.max_new_tokens", "8"),
    ("train", "--model", "mini_teacher", "--method", "naive_td", "--trajectories", "STORE"),
    ("eval", "--model", "mini_teacher", "--num_problems", "2"),
    ("calibrate", "--model", "mini_teacher", "--num_problems", "2", "--write", "false"),
    ("analyze", "--trajectories", "STORE"),
    ("convert", "package:nothing"),
    ("export", "--model", "mini_teacher"),
    ("frontier", "nowhere"),
    ("report", "nowhere"),
    ("bench decode",),
    ("bench train",),
]


@pytest.mark.parametrize("call", OUTPUTS, ids=lambda call: call[0])
def test_an_output_is_new_or_empty_or_ones_own(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, t3d: Run, call: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(store) if word == "STORE" else word for word in call]
    small = ("--training.batch_size", 4, "--training.micro_batch_size", 4)
    words = [*words[0].split(), *words[1:], *small * (call[0] == "train")]
    taken = shutil.copytree(store, tmp_path / "taken") if call[0] != "rollout" else tmp_path / "t"
    taken.mkdir(exist_ok=True)
    (taken / "thesis.tex").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for output in (taken, "", "."):
        outcome = t3d(*words, "--output", output)
        part = "name a directory of its own" if output != taken else f"{taken}: exists already and"
        assert_refused(outcome, 1, part)
    assert sorted(tmp_path.rglob("*")) == before


PROMPTS = [
    ("empty.txt", "\n\n", "holds no prompts"),
    ("bad.jsonl", '{"question": "x"}\n{"quest": 1}\n', "line 2: needs the key 'question'"),
    ("bad.csv", "x\n", "prompts come as .jsonl or .txt"),
    ("long.txt", "apples " * 300, "shorten or drop it"),
]


@pytest.mark.parametrize(("name", "text", "part"), PROMPTS)
def test_wrong_prompts(
    checkpoint: Path, tmp_path: Path, t3d: Run, name: str, text: str, part: str
) -> None:
    path, output = tmp_path / name, tmp_path / "store"
    path.write_text(text)
    short = ("--decoding.max_new_tokens", 16)
    outcome = t3d("rollout", "--model", checkpoint, "--prompts", path, "--output", output, *short)
    assert_refused(outcome, 1, part)
    assert not output.exists()


def test_prompt_longer_than_the_model(checkpoint: Path, t3d: Run) -> None:
    outcome = t3d("generate", "--model", checkpoint, "apples " * 300)
    assert_refused(outcome, 1, "more than the model's max_position_embeddings=256")


def train(t3d: Run, checkpoint: Path, store: Path, output: Path, *options: object) -> Outcome:
    fixed = ("--model", checkpoint, "--trajectories", store, "--output", output)
    size = ("--training.batch_size", 4, "--training.micro_batch_size", 4, "--training.steps", 1)
    return t3d("train", *fixed, "--method", "naive_td", "--progress", "false", *size, *options)


def test_stores_that_cannot_be_trained_on(
    checkpoint: Path, store: Path, tmp_path: Path, t3d: Run
) -> None:
    output, copy = tmp_path / "student", tmp_path / "copy"
    assert_refused(train(t3d, checkpoint, tmp_path, output), 1, "it has no manifest.json")
    assert_refused(train(t3d, checkpoint, tmp_path / "no", output), 1, "no such trajectory store")
    shutil.copytree(store, copy)
    shard = copy / "shards" / "part-00000-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_refused(train(t3d, checkpoint, copy, output), 1, f"{shard}: damaged: its checksum")
    shard.with_suffix(".json").unlink()
    outcome = train(t3d, checkpoint, copy, output)
    assert_refused(outcome, 1, f"{copy}: holds 8 of 16 trajectories; give the same `t3d rollout`")
    assert not output.exists()


def test_training_that_cannot_start(
    checkpoint: Path, store: Path, tmp_path: Path, t3d: Run
) -> None:
    output = tmp_path / "student"
    outcome = train(t3d, checkpoint, store, output, "--noiser.nosuch", 1)
    assert_refused(outcome, 1, "method naive_td: noiser: unknown key 'nosuch'")
    outcome = train(t3d, checkpoint, store, output, "--decoding", "{nosuch: 1}")
    assert_refused(outcome, 1, "method naive_td: decoding: ", "nosuch")
    outcome = train(t3d, checkpoint, store, output, "--decoding", "{random_share: 2.0}")
    assert_refused(outcome, 1, "method naive_td: decoding: random_share must lie in [0, 1]")
    outcome = train(t3d, checkpoint, store, output, "--decoding", "{random_share: 0.5}")
    assert_refused(outcome, 1, f"random_share is 0.5, but {store} was decoded with 0.0")
    outcome = train(t3d, checkpoint, store, output, "--objective.nosuch", 1)
    assert_refused(outcome, 1, "method naive_td: objective: unknown key 'nosuch'")
    outcome = train(t3d, checkpoint, store, output, "--training.batch_size", 6)
    assert_refused(outcome, 1, "batch_size=6 is no multiple of micro_batch_size=4")
    outcome = train(t3d, checkpoint, store, output, "--method", "sft")
    assert_refused(outcome, 1, "method 'sft' trains on labelled answers, a store has none")
    assert list(tmp_path.iterdir()) == []
