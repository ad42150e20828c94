from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t3d.models import from_pretrained
from t3d.provenance import hash_weights
from t3d.tasks.base import Example
from t3d.training.config import TrainingConfig
from t3d.training.pretrain import ModelShape, PretrainConfig, labelled_rows, new_model, pretrain

MICRO = PretrainConfig(
    num_examples=64,
    vocab_size=320,
    shape=ModelShape(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    ),
    training=TrainingConfig(
        steps=24,
        batch_size=8,
        micro_batch_size=8,
        learning_rate=1e-2,
        warmup_steps=2,
        save_steps=24,
        logging_steps=4,
    ),
)


def test_pretraining_learns_and_saves_what_loads(tmp_path: Path):
    output = pretrain(MICRO, tmp_path / "model", progress=False)
    [state] = output.glob("training/checkpoint-24/trainer_state.json")
    logs = [row for row in json.loads(state.read_text())["log_history"] if "loss" in row]
    assert [row["step"] for row in logs] == list(range(4, 25, 4))
    losses = [row["loss"] for row in logs]
    # Nats a token; a uniform guess costs 5.8.
    assert 4.5 < losses[0] < 6.5
    assert losses[-1] < losses[0] - 0.7
    assert all(row["cross_entropy"] > 0 for row in logs)

    lm = from_pretrained(output)
    assert lm.model.config.block_size == 4
    assert lm.model.config.to_diff_dict()["rope_theta"] == 10000
    assert lm.model.config.eos_token_id == lm.stop_token_ids[0]
    assert lm.model.config.tie_word_embeddings
    record = json.loads((output / "provenance.json").read_text())
    assert record["weights_hash"] == hash_weights(output) == lm.weights_hash
    assert record["seed"] == 0
    assert record["config"]["training"]["learning_rate"] == 1e-2


def test_a_new_model_depends_on_the_seed_alone():
    examples = [Example("a", "What is 1 + 1?", "2", "It is \\boxed{2}.")]

    def weights(seed: int) -> list[Any]:
        config = replace(MICRO, training=replace(MICRO.training, seed=seed))
        return new_model(config, examples).model.model.embed_tokens.weight.tolist()

    assert weights(0) == weights(0)
    assert weights(0) != weights(1)


def test_labelled_rows_end_with_the_stop_token_and_whole_blocks():
    example = Example("a", "What is 1 + 1?", "2", "It is \\boxed{2}.")
    lm = new_model(MICRO, [example])
    [row] = labelled_rows(lm, [example], 8)
    prompt, length = row["prompt_length"], len(row["input_ids"])
    assert lm.decode(row["input_ids"][:1]) == "<|im_start|>"
    assert row["input_ids"][:prompt] == lm.encode_prompt("What is 1 + 1?")
    assert lm.decode(row["input_ids"][prompt:]) == "It is \\boxed{2}."
    stop = row["input_ids"].index(lm.stop_token_ids[0], prompt)
    assert row["input_ids"][stop + 1 :] == [lm.pad_token_id] * (length - stop - 1)
    assert length % 8 == 0


def test_labelled_rows_need_worked_answers():
    example = Example("mini/7", "What is 1 + 1?", "2")
    lm = new_model(MICRO, [example])
    with pytest.raises(ValueError, match="mini/7: labelled training needs a worked answer"):
        labelled_rows(lm, [example], 8)
