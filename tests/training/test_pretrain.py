from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.core.files import hash_file
from t3d.core.provenance import hash_weights
from t3d.models import LanguageModel, from_pretrained
from t3d.tasks import convert
from t3d.tasks.base import Example
from t3d.tasks.chat import Chat, ChatData, OverLong
from t3d.tasks.records import to_jsonl
from t3d.training.config import ModelShape, PretrainConfig, TrainingConfig
from t3d.training.pretrain import (
    RowCounts,
    chat_rows,
    labelled_rows,
    new_model,
    pretrain,
    pretraining_method,
    read_lesson,
)

Log = Callable[[Path], list[dict[str, float]]]
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
        save_seconds=0,
        logging_steps=4,
    ),
)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What training into a directory logged; its last checkpoint stays for that."""
    monkeypatch.setattr("t3d.training.run._remove_checkpoints", lambda directory: None)

    def read(output: Path) -> list[dict[str, float]]:
        path = output.parent / f".{output.name}.training"
        [state] = path.glob("checkpoint-24/trainer_state.json")
        return [row for row in json.loads(state.read_text())["log_history"] if "loss" in row]

    return read


def test_pretraining_learns_and_saves_what_loads(tmp_path: Path, log: Log):
    output = pretrain(MICRO, tmp_path / "model", progress=False)
    logs = log(output)
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


def test_a_checkpoint_tells_what_it_was_trained_from(tmp_path: Path):
    config = replace(MICRO, training=replace(MICRO.training, steps=1))
    first = pretrain(config, tmp_path / "first", progress=False)
    second = pretrain(replace(config, model=str(first)), tmp_path / "second", progress=False)
    records = [json.loads((path / "provenance.json").read_text()) for path in (first, second)]
    assert "base" not in records[0]
    assert (records[1]["model"], records[1]["base"]) == (str(first), records[0])


def test_a_new_model_depends_on_the_seed_alone():
    texts = ["What is 1 + 1?", "It is \\boxed{2}."]

    def weights(seed: int) -> list[Any]:
        config = replace(MICRO, training=replace(MICRO.training, seed=seed))
        return new_model(config, texts).model.model.embed_tokens.weight.tolist()

    assert weights(0) == weights(0)
    assert weights(0) != weights(1)


def test_labelled_rows_end_with_the_stop_token_and_whole_blocks():
    example = Example("a", "What is 1 + 1?", "2", "It is \\boxed{2}.")
    lm = new_model(MICRO, [example.question, str(example.reference)])
    [row] = labelled_rows(lm, [example], 8)
    prompt, length = row["prompt_length"], len(row["input_ids"])
    assert lm.decode(row["input_ids"][:1]) == "<|im_start|>"
    assert row["input_ids"][:prompt] == lm.encode_prompt("What is 1 + 1?")
    assert lm.decode(row["input_ids"][prompt:]) == "It is \\boxed{2}."
    stop = row["input_ids"].index(lm.stop_token_ids[0], prompt)
    assert row["input_ids"][stop + 1 :] == [lm.pad_token_id] * (length - stop - 1)
    assert length % 8 == 0


def test_problems_of_several_tasks_take_turns():
    config = replace(MICRO, task=["mini_gsm", "mini_week"], num_examples=7)
    examples = config.examples()
    found = [[e for e in examples if e.id.startswith(task)] for task in config.tasks]
    assert [e for turn in zip(*found, strict=False) for e in turn] == examples[:6]
    for task, own in zip(config.tasks, found, strict=True):
        alone = replace(config, task=task).examples()
        assert own == [replace(e, id=f"{task}:{e.id}") for e in alone[: len(own)]]
    assert [len(own) for own in found] == [4, 3]


@pytest.mark.parametrize("with_data", [False, True])
def test_prompts_take_loss_where_it_is_asked(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_data: bool
):
    data = write_rows(tmp_path / "a.jsonl", 9, {"prompt": "x", "response": "y"})
    base = adapted(start, data, max_length=64) if with_data else replace(MICRO, model=str(start))

    def rows(prompt_loss: bool) -> list[dict[str, Any]]:
        seen: list[list[dict[str, Any]]] = []

        def stop(lm: Any, method: Any, rows: list[dict[str, Any]], *args: Any, **kwargs: Any):
            seen.append(rows)
            raise InterruptedError

        monkeypatch.setattr("t3d.training.pretrain.train", stop)
        with pytest.raises(InterruptedError):
            pretrain(replace(base, prompt_loss=prompt_loss), tmp_path / "model", progress=False)
        return seen[0]

    mask = from_pretrained(start).mask_token_id
    for row, whole in zip(rows(False), rows(True), strict=True):
        length = len(row["input_ids"])
        assert row["prompt_length"] > 0
        assert whole == row | {
            "prompt_length": 0,
            "num_response_tokens": length,
            "decode_order": list(range(length)),
            "initial_ids": [mask] * length,
        }


def test_labelled_rows_need_worked_answers():
    example = Example("mini/7", "What is 1 + 1?", "2")
    lm = new_model(MICRO, [example.question, str(example.reference)])
    with pytest.raises(ValueError, match="mini/7: labelled training needs a worked answer"):
        labelled_rows(lm, [example], 8)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to adapt."""
    path = tmp_path_factory.mktemp("start") / "model"
    new_model(MICRO, [e.question for e in MICRO.examples()]).save(path)
    return path


def chat(num: int) -> Chat:
    turns = [("system", "Count."), ("user", "1 2"), ("assistant", "3"), ("user", f"{num} and?")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    return Chat(f"a.jsonl, line {num + 1}", prompt, f"It is {num + 1}.")


def test_a_chat_is_a_prompt_that_takes_no_loss_and_a_response_that_does(start: Path) -> None:
    lm = from_pretrained(start)
    [row], counts = chat_rows(lm, [chat(0)], 8, max_length=256, over_long="drop")
    assert counts == RowCounts(rows=1, cut=0, dropped=0)
    whole = str(lm.tokenizer.decode(row["input_ids"]))
    filling = whole.rpartition("<|im_end|>")[2]
    assert whole == (
        "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\n1 2<|im_end|>\n"
        "<|im_start|>assistant\n3<|im_end|>\n<|im_start|>user\n0 and?<|im_end|>\n"
        "<|im_start|>assistant\nIt is 1.<|im_end|>" + filling
    )
    assert set(filling.split("<|endoftext|>")) == {""}
    prompt = str(lm.tokenizer.decode(row["input_ids"][: row["prompt_length"]]))
    assert prompt.endswith("<|im_start|>assistant\n")
    assert row["num_response_tokens"] == len(row["input_ids"]) - row["prompt_length"]
    assert len(row["input_ids"]) % 8 == 0


def test_one_question_is_the_row_of_a_task(start: Path) -> None:
    """The two ways to labelled rows agree where they can."""
    lm = from_pretrained(start)
    example = Example("a", "What is 1 + 1?", "2", "It is \\boxed{2}.")
    question = [{"role": "user", "content": example.question}]
    same = Chat("a", question, example.reference or "")
    rows, _ = chat_rows(lm, [same], 8, max_length=256, over_long="drop")
    assert rows == labelled_rows(lm, [example], 8)


def test_plain_text_is_all_response_and_ends_with_the_end_of_text(start: Path) -> None:
    lm = from_pretrained(start)
    [row], _ = chat_rows(lm, [Chat("a", [], "One two.")], 4, max_length=64, over_long="drop")
    assert row["prompt_length"] == 0
    ids, end = lm.tokenizer("One two.")["input_ids"], lm.stop_token_ids[-1]
    assert lm.decode([end]) == ""
    assert row["input_ids"][: len(ids) + 1] == [*ids, end]
    assert set(row["input_ids"][len(ids) + 1 :]) <= {lm.pad_token_id}


CHATS = st.lists(
    st.builds(
        Chat,
        st.just("a"),
        st.sampled_from([[], chat(0).prompt, [{"role": "user", "content": "x"}]]),
        st.text("ab ", min_size=1, max_size=60),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("over_long", ["drop", "cut"])
@settings(max_examples=20)
@given(chats=CHATS, max_length=st.integers(1, 80), block_size=st.integers(1, 9))
def test_no_row_is_too_long_and_every_one_is_counted(
    start: Path, over_long: OverLong, chats: list[Chat], max_length: int, block_size: int
) -> None:
    lm = loaded(start)
    full, _ = chat_rows(lm, chats, block_size, max_length=10_000, over_long="drop")
    assert len(full) == len(chats)
    rows, counts = chat_rows(lm, chats, block_size, max_length=max_length, over_long=over_long)
    assert counts.rows == len(rows) == len(chats) - counts.dropped
    assert [row["index"] for row in rows] == [*range(len(rows))]
    for row in rows:
        assert len(row["input_ids"]) <= max_length
        assert len(row["input_ids"]) % block_size == 0
        assert row["num_response_tokens"] >= 1
    short = [row for row in full if len(row["input_ids"]) <= max_length]
    content = [row["input_ids"] for row in rows]
    if over_long == "drop":
        assert content == [row["input_ids"] for row in short]
        assert counts.cut == 0
    else:
        room = max_length - max_length % block_size
        kept = [row for row in full if row in short or row["prompt_length"] < room]
        assert content == [row["input_ids"][:room] for row in kept]
        assert counts.cut == len(kept) - len(short)


@cache
def loaded(path: Path) -> LanguageModel:
    return from_pretrained(path)


def test_turns_that_the_template_refuses_are_named(start: Path) -> None:
    lm = from_pretrained(start)
    lm.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="a.jsonl, line 3: the chat template refuses .*alternate"):
        chat_rows(lm, [chat(2)], 4, max_length=64, over_long="drop")


def adapted(start: Path, data: Path, **changes: Any) -> PretrainConfig:
    chosen = ChatData(str(data), **changes)
    return replace(MICRO, model=str(start), data=chosen, num_examples=64)


def write_rows(path: Path, num: int, last: dict[str, str]) -> Path:
    rows = [{"prompt": f"{n} and?", "response": f"It is {n + 1}."} for n in range(num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, last]))
    return path


def test_a_checkpoint_adapts_to_chats(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], log: Log
) -> None:
    long = {"prompt": "x", "response": "1 2 " * 200}
    data = write_rows(tmp_path / "a.jsonl", 20, long)
    config = replace(adapted(start, data, max_length=64), weighting="uniform")
    output = pretrain(config, tmp_path / "model", progress=False)
    told = f"{data}: 20 rows; max_length=64 cut 0 of them and dropped 1 others"
    assert told in capsys.readouterr().err
    record = json.loads((output / "provenance.json").read_text())
    counts = {"rows": 20, "cut": 0, "dropped": 1}
    assert record["data"] == {"path": str(data), "hash": hash_file(data), **counts}
    assert record["model"] == str(start)
    # It was saved without.
    assert record["base"] is None
    assert record["config"]["weighting"] == "uniform"
    assert (record["optimizer_steps"], record["weights_hash"]) == (24, hash_weights(output))
    lm, before = from_pretrained(output), from_pretrained(start)
    assert lm.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    losses = [row["loss"] for row in log(output)]
    assert losses[-1] < losses[0] - 0.7


def test_a_checkpoint_adapts_to_plain_text(start: Path, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps({"text": f"{n} and {n}."}) + "\n" for n in range(9)))
    training = replace(MICRO.training, steps=2, logging_steps=1)
    config = replace(adapted(start, data, max_length=32), training=training)
    output = pretrain(config, tmp_path / "model", progress=False)
    new, old = (from_pretrained(path).model.state_dict() for path in (output, start))
    assert not torch.equal(new["model.norm.weight"], old["model.norm.weight"])


def test_answers_of_a_benchmark_in_a_folder_of_ones_own(start: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1?", "answer": f"It is so.\n#### {n}"} for n in range(510)]
    records = convert.gsm8k(rows, split="train", source="mine")
    (tmp_path / "gsm8k_train.jsonl").write_bytes(to_jsonl(records))
    config = replace(MICRO, model=str(start), task="gsm8k", folder=tmp_path)
    examples = config.examples()
    assert len(examples) == 10
    assert examples[3].reference == "It is so.\nThe answer is \\boxed{3}."
    with pytest.raises(ValueError, match="gsm8k_train.jsonl: there is no such file"):
        replace(config, folder=tmp_path / "nosuch").examples()


def test_too_little_data_leaves_nothing(start: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", 9, {"prompt": "x", "response": "y"})
    output = tmp_path / "model"
    for changes, part in [
        ({"max_length": 16}, "a.jsonl: 0 rows are fewer than batch_size=8; 10 are longer than max"),
        ({"max_length": 300}, "max_length=300 is beyond the 256 positions"),
    ]:
        with pytest.raises(ValueError, match=part):
            pretrain(adapted(start, data, **changes), output, progress=False)
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"model": "m", "data": ChatData("a.jsonl"), "folder": Path()},
            "folder: holds a task's files; leave it out beside data",
        ),
        ({"task": []}, "task: the list is empty"),
        ({"num_views": 0}, "num_views must be at least 1"),
        ({"weighting": "none"}, "weighting must be one of nelbo, uniform"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        pretraining_method(replace(MICRO, **changes))


def write_worked(path: Path, reference: str) -> Path:
    rows = [{"question": f"Frobnicate {n}?", "answer": n, "reference": reference} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_new_model_learns_chats_with_a_tokenizer_of_their_words(tmp_path: Path) -> None:
    data = write_worked(tmp_path / "a.jsonl", "Quux.")
    config = replace(MICRO, data=ChatData(str(data)), training=replace(MICRO.training, steps=1))
    lm = from_pretrained(pretrain(config, tmp_path / "model", progress=False))
    assert "Quux" in {lm.decode([token]) for token in lm.encode_responses(["Quux."])[0]}


def test_a_worked_answer_holds_its_final_answer(tmp_path: Path) -> None:
    data = write_worked(tmp_path / "mine.jsonl", "It is so.")
    with pytest.raises(ValueError, match="mine/1: the worked answer has no .*end it with .*boxed"):
        read_lesson(replace(MICRO, task=str(data)))


def test_sequences_beyond_the_positions_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_worked(tmp_path / "mine.jsonl", "so " * 250 + "\\boxed{1}")
    read_lesson(replace(MICRO, task=str(data)))
    told = "9 of 9 sequences are longer than the model's 256 positions"
    assert told in capsys.readouterr().err
