"""What the calls of every command read, made by the commands themselves."""

from __future__ import annotations

import json
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from t3d.cli.main import main
from t3d.models import wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import train_tokenizer
from t3d.testing import tiny
from tests.models.llama_gguf import write_gguf

SHORT = "--decoding.max_new_tokens 8 --decoding.temperature 0"
TRAIN = "--training.steps 1 --training.batch_size 2 --training.micro_batch_size 2"
BENCH = "--model model --device cpu"
CALLS: list[tuple[str, str, str]] = [
    ("run", "run.yaml --output out", "run.yaml model"),
    ("run", "run.yaml --output out --dry_run --rates rates", "run.yaml model rates"),
    ("run", "run.yaml --output done", "run.yaml model done"),
    ("compare", "compare.yaml --output out", "compare.yaml model own"),
    ("compare", "compare.yaml --dry_run", "compare.yaml model own"),
    ("run", "rounds.yaml --output out", "rounds.yaml own model"),
    ("run", "adapt.yaml --output out", "adapt.yaml own ar"),
    ("convert", "ar --output out", "ar"),
    ("convert", "ar.gguf --output out", "ar.gguf"),
    ("pretrain", "pretrain.yaml --output out", "pretrain.yaml own"),
    (
        "pretrain",
        f"--model model --data.path chats.jsonl --output out {TRAIN}",
        "model chats.jsonl",
    ),
    (
        "pretrain",
        f"--model model --data.path chats.parquet --output out {TRAIN}",
        "model chats.parquet",
    ),
    (
        "rollout",
        f"--model model --prompts prompts.jsonl --output out {SHORT}",
        "model prompts.jsonl",
    ),
    (
        "rollout",
        f"--model model --prompts prompts.jsonl --output store --shard_size 1 {SHORT}",
        "model prompts.jsonl store",
    ),
    ("rollout", f"--model model --task own --num_prompts 2 --output out {SHORT}", "model own"),
    (
        "train",
        f"--model model --trajectories store --output out --method t3d {TRAIN}",
        "model store",
    ),
    ("eval", "--model model --task own --config grid.yaml --output out", "model own grid.yaml"),
    (
        "eval",
        "--model model --task own --config grid.yaml --output rows",
        "model own grid.yaml rows",
    ),
    ("frontier", "rows --output out", "rows"),
    (
        "calibrate",
        "--model model --task own --split test --config grid.yaml --output out",
        "model own grid.yaml",
    ),
    (
        "lm-eval",
        f"--model model --tasks [mini] --include_path tasks --output out {SHORT}",
        "model tasks",
    ),
    (
        "analyze",
        "--trajectories store --teacher model --students [model] --num_states 2 --num_samples 2 "
        "--output out",
        "store model",
    ),
    ("report", "rows --output out", "rows"),
    ("view", "store --output out.html", "store"),
    ("view", "rows store --output out.html", "rows store"),
    ("generate", f"--model model {SHORT} Why?", "model"),
    ("generate", f"--model model --task own --index 1 {SHORT}", "model own"),
    ("chat", f"model {SHORT}", "model"),
    # Refused twice over, so that no fault makes a server that waits.
    ("serve", "a=model a=model --host 1.2.3.4", "model"),
    ("export", "--model model --output out --results rows/results.json", "model rows"),
    ("export", "--check exported", "exported"),
    ("import", "theirs.json --model model --output out", "theirs.json model"),
    ("export-rollouts", "--trajectories store --model model --output out.json", "store model"),
    (
        "bench decode",
        f"{BENCH} --batch_sizes [1] --denoising_steps [4] --new_tokens 8 --prompt_tokens [4,5] "
        "--num_requests 1 --repeats 1 --output out",
        "model",
    ),
    ("bench train", f"{BENCH} {TRAIN} --training.steps 2 --output out", "model"),
    ("data download", "gsm8k --folder data", "data"),
    ("data convert", "upstream.json --output out.jsonl --dataset math", "upstream.json"),
]
"""Command, arguments, and what they read."""


def build(root: Path) -> None:
    """Make everything that calls read, below `root`, with the commands themselves."""
    problems = get_task("mini_gsm").examples("train", 60)
    tokenizer = train_tokenizer(
        [t for e in problems for t in (e.question, e.reference or "")], vocab_size=300
    )
    wrap(tiny(vocab_size=len(tokenizer), dtype=torch.float32), tokenizer, "tiny").save(
        root / "model"
    )
    _autoregressive(root / "ar", tokenizer)
    rows = [
        {"question": e.question, "answer": e.answer, "reference": e.reference} for e in problems
    ]
    (root / "own").mkdir()
    for name, part in (("train", rows[:4]), ("dev", rows[4:6]), ("test", rows[6:9])):
        _lines(root / "own" / f"{name}.jsonl", part)
    _lines(root / "prompts.jsonl", [{"question": row["question"]} for row in rows[:2]])
    chats = [[("user", r["question"]), ("assistant", r["reference"])] for r in rows[:4]]
    turns = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    _lines(root / "chats.jsonl", [{"messages": chat} for chat in turns])
    pq.write_table(pa.Table.from_pylist(rows[:4]), root / "chats.parquet")
    upstream = [{"question": r["question"], "ground_truth_answer": r["answer"]} for r in rows[:3]]
    (root / "upstream.json").write_text(json.dumps(upstream))
    (root / "data").mkdir()
    _lines(root / "data" / "gsm8k_test.jsonl", rows[:2])
    training = {"steps": 2, "batch_size": 2, "micro_batch_size": 2, "block_sizes": [4]}
    decoding = {"denoising_steps": 1, "max_new_tokens": 8, "temperature": 0.0}
    settings = [decoding | {"denoising_steps": steps} for steps in (4, 1)]
    run = {
        "model": "model",
        "data": {"num_prompts": 4, "num_problems": 2},
        "rollout": {"decoding": decoding, "batch_size": 4, "shard_size": 2},
        "methods": {
            "t3d": {"method": "t3d", "noiser": {"num_views": 1}, "objective": {"beta": 0.5}}
        },
        "training": training,
        "watch": {"every": 1, "num_problems": 2, "decoding": decoding},
        "evaluation": {"settings": settings, "measure_latency": False, "num_shown": 1},
    }
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 4}
    pretrain = {"task": "own", "num_examples": 4, "vocab_size": 300, "shape": shape}
    compare = {key: value for key, value in run.items() if key != "watch"} | {"seeds": [0]}
    rtd = {"rtd": {"method": "rtd", "rounds": 2, "noiser": {"num_views": 1}}}
    own = run | {"task": "own", "watch": None}
    recipes = {
        "rounds": own | {"methods": rtd},
        "adapt": own
        | {"adapt": {"source": "ar", "pretrain": pretrain | {"training": training}}, "methods": {}},
        "run": run,
        "compare": compare | {"task": "own", "recommended": "t3d"},
        "pretrain": pretrain | {"training": training},
        "grid": {"settings": settings, "measure_latency": False},
    }
    for name, document in recipes.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(document))
    _harness(root / "tasks", rows[:2])
    made = [
        f"rollout --model model --prompts prompts.jsonl --output store --shard_size 1 {SHORT}",
        "eval --model model --task own --config grid.yaml --output rows",
        "run run.yaml --output done",
        "export --model model --output exported",
        "export-rollouts --trajectories store --model model --output theirs.json",
        f"bench decode {BENCH} --batch_sizes [1] --denoising_steps [4] --new_tokens 4 "
        "--prompt_tokens [4,5] --num_requests 1 --repeats 1 --engines [t3d] --output rates",
    ]
    with chdir(root), redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        for call in made:
            assert main(call.split()) == 0, (call, err.getvalue())


def _lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _autoregressive(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    write_gguf(path.with_suffix(".gguf"), model, tokenizer)
    tokenizer.save_pretrained(path)


def _harness(folder: Path, rows: list[Any]) -> None:
    """A task of lm-evaluation-harness."""
    folder.mkdir()
    _lines(folder / "problems.jsonl", rows)
    task = {
        "task": "mini",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "tasks/problems.jsonl"}, "cache_dir": "cache"},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "output_type": "generate_until",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "mini.yaml").write_text(yaml.safe_dump(task))
