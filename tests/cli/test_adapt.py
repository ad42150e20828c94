"""A recipe whose teacher is made of an autoregressive model, and its smallest version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from t3d.core.provenance import hash_weights
from t3d.experiment.plan import SMOKE
from t3d.models import from_pretrained
from t3d.tasks import get_task
from t3d.tasks.tokenizer import CHAT_TEMPLATE, train_tokenizer
from tests.cli.conftest import Run, recipe


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a chat template and no mask token."""
    examples = get_task("mini_gsm").examples("train", 100)
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    document = json.loads(train_tokenizer(texts, vocab_size=400).backend_tokenizer.to_str())
    document["added_tokens"].pop()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    path = tmp_path_factory.mktemp("models") / "llama"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(settings).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def adapting(source: Path, tmp_path: Path) -> Path:
    document = recipe(source)
    del document["model"]
    training = {"steps": 4, "batch_size": 8, "micro_batch_size": 8, "block_sizes": [4]}
    document["adapt"] = {"source": str(source), "pretrain": {"num_examples": 40}}
    document["adapt"]["pretrain"]["training"] = training
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_the_teacher_is_converted_adapted_and_distilled(
    t3d: Run, adapting: Path, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ("run", adapting, "--output", output, "--progress", "false")
    assert t3d(*command).code == 0
    converted, teacher = (from_pretrained(output / name) for name in ("converted", "teacher"))
    assert type(teacher.model).__name__ == "LlamaForCausalLM"
    assert hash_weights(output / "converted") != hash_weights(output / "teacher")
    assert converted.mask_token_id == teacher.mask_token_id
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"original", "naive_td", "t3d"}
    # Given again, nothing is made anew.
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    assert t3d(*command).code == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == before
    # Another adaptation is another run.
    outcome = t3d(*command, "--adapt.pretrain.num_examples", "41")
    assert outcome.code == 1
    assert "holds what another recipe made (pretrain differ)" in outcome.err


def test_smoke_walks_every_stage_beside_the_real_output(
    t3d: Run, adapting: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    outcome = t3d("run", adapting, "--smoke", "--output", output, "--progress", "false")
    assert outcome.code == 0
    assert not output.exists()
    assert outcome.err.startswith(SMOKE)
    assert outcome.out.startswith(SMOKE)
    rows = json.loads((tmp_path / "out-smoke" / "results.json").read_text())["rows"]
    assert {row["n"] for row in rows} == {2}


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("source", "empty", "empty: neither config.json nor a .gguf file"),
        ("pretrain.data.path", "none.jsonl", "none.jsonl: cannot be read"),
        ("pretrain.task", "none", "unknown task 'none'"),
    ],
)
def test_what_cannot_be_adapted_leaves_the_output_free(
    t3d: Run,
    adapting: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: str,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    outcome = t3d("run", adapting, f"--adapt.{key}", value, "--output", "out")
    assert outcome.code == 1
    assert part in outcome.err
    assert not any(path.is_file() for path in Path("out").rglob("*"))
