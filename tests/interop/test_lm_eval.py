"""The harness's model `t3d`, its results and its command line, on the shipped model."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from t3d.decoding.build import make_decoder
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Request
from t3d.interop.harness import HarnessConfig
from t3d.interop.lm_eval import RESULTS, SAMPLES, HarnessModel, _generation, evaluate_tasks
from t3d.models import LanguageModel, from_pretrained
from t3d.tasks import get_task

GREEDY = DecodingConfig(denoising_steps=2, temperature=0.0, max_new_tokens=16)
PROBLEMS = get_task("mini_gsm").examples("test", 20)
# The model ends at once what is no turn of a chat.
CONTEXT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
OWN_TASKS = (None, None, False, None)
"""Defaults of TaskManager without the harness's own tasks, which take 20 s to parse."""


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return from_pretrained("mini_teacher")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mini_gsm and a multiple choice task as the harness's task files."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [json.dumps({"question": e.question, "answer": e.answer}) for e in PROBLEMS]
    (folder / "problems.jsonl").write_text("\n".join(rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "problems.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
    }
    boxed = {"function": "regex", "regex_pattern": r"\\boxed\{([^{}]*)\}", "group_select": -1}
    documents = {
        "mini": {
            "output_type": "generate_until",
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 96},
            "filter_list": [{"name": "boxed", "filter": [boxed, {"function": "take_first"}]}],
            "metric_list": [{"metric": "exact_match"}],
        },
        "choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": ["1", "2"],
            "doc_to_target": 0,
            "metric_list": [{"metric": "acc"}],
        },
    }
    for name, document in documents.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | shared | document))
    return folder


@pytest.fixture(scope="module")
def evaluated(
    lm: LanguageModel, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """Results of the harness, and the directory they were written to."""
    output = tmp_path_factory.mktemp("output") / "new"
    # What the task says wins: 96 tokens, greedily.
    decoding = replace(GREEDY, temperature=0.7)
    config = HarnessConfig(["mini"], decoding, include_path=tasks, log_samples=True)
    return evaluate_tasks(lm, config, output, progress=False), output


def _unexpected(*_: object) -> None:
    pytest.fail("decoded")


def chatting(lm: LanguageModel, decoding: DecodingConfig, **settings: Any) -> HarnessModel:
    """The model as the harness has it when prompts come through the chat template."""
    model = HarnessModel(lm, decoding, **settings)
    model.apply_chat_template([{"role": "user", "content": ""}])
    return model


def requests(
    gen_kwargs: list[dict[str, Any]], contexts: list[str] | None = None, task: str = "mini"
) -> list[Instance]:
    contexts = contexts or [CONTEXT.format(problem.question) for problem in PROBLEMS]
    return [
        Instance("generate_until", {}, (context, kwargs), 0, (task, number, 1))
        for number, (context, kwargs) in enumerate(zip(contexts, gen_kwargs, strict=False))
    ]


def tokens(lm: LanguageModel, context: str) -> list[int]:
    """What the engine itself gives after a text, 16 tokens or a few more."""
    prompt = lm.tokenizer(context, add_special_tokens=False)["input_ids"]
    return make_decoder(lm, GREEDY, 1).decode([Request(prompt)])[0].token_ids


def test_control_tokens_in_texts_are_refused(lm: LanguageModel) -> None:
    def harness() -> HarnessModel:
        return HarnessModel(lm, GREEDY, progress=False)

    with pytest.raises(ValueError, match=r"^mini, problem 0: the text holds <\|im_end\|>"):
        harness().generate_until(requests([{}], ["Few shots <|im_end|>"]))
    with pytest.raises(ValueError, match=r"the turn 'a <\|MASK\|>': the text holds <\|MASK\|>"):
        harness().apply_chat_template([{"role": "user", "content": "a <|MASK|>"}])
    templated = harness()
    text = templated.apply_chat_template([{"role": "user", "content": "What is 1 + 1?"}])
    assert "<|im_end|>" in text
    assert len(templated.generate_until(requests([{}], [text]))) == 1


def test_the_harness_grades_as_we_do(evaluated: tuple[dict[str, Any], Path]) -> None:
    results, output = evaluated
    samples = json.loads((output / SAMPLES).read_text())["mini"]
    outputs = [sample["resps"][0][0] for sample in samples]
    grades = get_task("mini_gsm").grade(PROBLEMS, outputs)
    # The harness reads the answer alone.
    correct = [grade.string_correct for grade in grades]
    assert [bool(sample["exact_match"]) for sample in samples] == correct
    assert results["results"]["mini"]["exact_match,boxed"] == pytest.approx(
        correct.count(True) / 20
    )
    assert 0 < correct.count(True) < 20


def test_the_chat_template_is_ours(lm: LanguageModel, evaluated: tuple[Any, Path]) -> None:
    samples = json.loads((evaluated[1] / SAMPLES).read_text())["mini"][:3]
    prompts = lm.encode_examples(PROBLEMS[:3])
    for sample, prompt in zip(samples, prompts, strict=True):
        context, _ = sample["arguments"][0]
        assert lm.tokenizer(context, add_special_tokens=False)["input_ids"] == prompt
    decoder = make_decoder(lm, replace(GREEDY, max_new_tokens=96), 3)
    completions = decoder.decode([Request(prompt) for prompt in prompts])
    answers = [lm.decode(completion.token_ids) for completion in completions]
    assert [sample["resps"][0][0] for sample in samples] == answers


def test_results_say_how_they_were_decoded(
    lm: LanguageModel, evaluated: tuple[dict[str, Any], Path]
) -> None:
    results, output = evaluated
    assert json.loads((output / RESULTS).read_text()) == results
    assert sorted(path.name for path in output.iterdir()) == [RESULTS, SAMPLES]
    (row,) = results["config"]["decodings"]
    assert (row["n"], row["max_new_tokens"], row["temperature"]) == (20, 96, 0.0)
    assert 1.5 < row["tokens_per_forward"] <= 2
    assert results["config"]["weights_hash"] == results["provenance"]["weights_hash"]
    assert results["provenance"]["weights_hash"] == lm.weights_hash
    assert results["provenance"]["config"]["decoding"]["temperature"] == 0.7


def test_neither_batch_size_nor_order_changes_an_output(lm: LanguageModel) -> None:
    sampled = {"do_sample": True, "temperature": 0.9}
    asked = requests([{"max_gen_toks": [8, 4][i % 2]} | sampled for i in range(5)])
    alone = chatting(lm, GREEDY, batch_size=1, seed=5).generate_until(asked)
    together = chatting(lm, GREEDY, batch_size=4, seed=5)
    assert together.generate_until(asked[::-1]) == alone[::-1]
    assert chatting(lm, GREEDY, batch_size=4, seed=6).generate_until(asked) != alone


def test_repeats_of_a_problem_differ_and_greedy_ones_do_not(lm: LanguageModel) -> None:
    model = chatting(lm, replace(GREEDY, temperature=2.0), batch_size=4)
    sampled, greedy = requests([{"do_sample": True}, {"do_sample": False}])
    assert len(set(model.generate_until([sampled] * 4))) == 4
    assert len(set(model.generate_until([greedy] * 4))) == 1


def test_an_output_has_the_tokens_asked_for(lm: LanguageModel) -> None:
    """Verbatim contexts; lengths that end within a block, under every name."""
    names = ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"]
    lengths = [5, 1, 7, 10]
    asked = requests([{name: n} for name, n in zip(names, lengths, strict=True)])
    outputs = chatting(lm, GREEDY, batch_size=4).generate_until(asked)
    expected = [tokens(lm, r.arguments[0])[:n] for r, n in zip(asked, lengths, strict=True)]
    assert outputs == [lm.decode(ids) for ids in expected]


def test_outputs_end_before_the_first_stop_text(lm: LanguageModel) -> None:
    context = CONTEXT.format(PROBLEMS[0].question)
    text = lm.decode(tokens(lm, context)[:16])
    space, late = text.index(" ", 1), text[-3:]
    stops = [None, [], "", [late], [late, text[space]], ["\x00"], text[:2]]
    asked = requests([{"until": stop} for stop in stops], [context] * len(stops))
    outputs = chatting(lm, GREEDY, batch_size=8).generate_until(asked)
    until_late, until_space = text[: text.index(late)], text[: text.index(text[space])]
    assert outputs == [text, text, text, until_late, until_space, text, ""]


def test_answers_are_cached_as_they_finish(
    lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = chatting(lm, GREEDY, batch_size=3)
    asked = requests([{}] * 3)
    cached = CachingLM(model, str(tmp_path / "cache.db"))
    # With the hook alone, as in a run that was killed before the end.
    first = model.generate_until(asked, disable_tqdm=True)
    assert capsys.readouterr().err == ""
    assert cached.generate_until(asked) == first
    assert model.get_model_info()["decodings"][0]["n"] == 3
    chatting(lm, GREEDY).generate_until(asked[:1])
    assert "lm-eval: 0/" in capsys.readouterr().err
    cached.dbdict.close()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 2),
            "do_sample": st.sampled_from([False, None]),
            "top_k": st.integers(0, 50),
            "top_p": st.floats(0.1, 1),
            "max_gen_toks": st.integers(1, 999),
            "num_beams": st.just(1),
        },
    )
)
def test_generation_parameters_win_over_the_model_s(asked: dict[str, Any]) -> None:
    base = replace(GREEDY, temperature=0.3, top_p=0.5)
    decoding, _ = _generation(base, asked, "task")
    greedy = asked.get("do_sample") is False
    assert decoding.temperature == (0 if greedy else asked.get("temperature", 0.3))
    assert decoding.top_p == asked.get("top_p", 0.5)
    assert decoding.top_k == asked.get("top_k", 0)
    assert decoding.max_new_tokens == asked.get("max_gen_toks", 16)
    assert decoding.denoising_steps == 2


@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ({"repetition_penalty": 1.2}, "gen_kwargs of mini: repetition_penalty=1.2 is nothing that"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"min_p": 0.1}, "min_p=0.1"),
        ({"temperature": "hot"}, "temperature must not be 'hot'"),
        ({"max_gen_toks": 4.5}, "max_new_tokens must not be 4.5"),
        ({"max_gen_toks": 0}, "gen_kwargs of mini: max_new_tokens must be at least 1"),
        ({"temperature": -1}, "gen_kwargs of mini: temperature must not be negative"),
        ({"do_sample": True}, "do_sample=true needs a temperature above 0"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=true needs a temperature above 0"),
        ({"max_gen_toks": 10**6}, "more than the model's max_position_embeddings"),
    ],
)
def test_parameters_that_cannot_be_honoured_are_refused(
    lm: LanguageModel, gen_kwargs: dict[str, Any], message: str
) -> None:
    model = chatting(lm, GREEDY)
    # Before anything is decoded.
    with pytest.raises(ValueError, match=message):
        model.generate_until(requests([{}, gen_kwargs]))
    assert model.get_model_info()["decodings"] == []


def test_models_come_from_the_registry_by_text(lm: LanguageModel) -> None:
    text = "pretrained=mini_teacher,block_size=8,denoising_steps=2,max_new_tokens=8,seed=3"
    text += ",remasking=low_confidence_dynamic,confidence_threshold=0.8,dtype=bfloat16"
    # What the harness's command line adds.
    added = {"batch_size": "7", "max_batch_size": None, "device": "cpu"}
    model = get_model("t3d").create_from_arg_string(text, added)
    assert isinstance(model, HarnessModel)
    assert (model.batch_size, model.seed) == (7, 3)
    assert model.decoding == DecodingConfig(
        8, 2, "low_confidence_dynamic", 0.8, temperature=0.0, max_new_tokens=8
    )
    assert str(model.lm.model.dtype) == "torch.bfloat16"
    assert model.lm.weights_hash == lm.weights_hash
    assert model.tokenizer_name == "mini_teacher"
    own = get_model("t3d").create_from_arg_string(f"{text},batch_size=2", added)
    assert isinstance(own, HarnessModel)
    assert own.batch_size == 2
    # Ours beside the harness's own.
    assert get_model("dummy").__name__ == "DummyLM"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("block_size=4", "pretrained=mini_teacher"),
        ("pretrained=mini_teacher,blok_size=4", "model_args: blok_size=4 is nothing that"),
        ("pretrained=mini_teacher,denoising_steps=9", "model_args: denoising_steps must be at"),
        ("pretrained=mini_teacher,denoising_steps=two", "denoising_steps must not be 'two'"),
        ("pretrained=mini_teacher,top_k=True", "top_k must not be True"),
        ("pretrained=mini_teacher,batch_size=auto", "batch_size must be a number from 1 up"),
        ("pretrained=mini_teacher,batch_size=0", "batch_size must be a number from 1 up"),
        ("pretrained=mini_teacher,seed=x", "seed must be a whole number, got 'x'"),
        ("pretrained=mini_teacher,dtype=int8", "dtype is one of auto, float32, bfloat16, not"),
        ("pretrained=./nowhere", "nowhere: no such checkpoint directory"),
    ],
)
def test_wrong_model_args(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HarnessModel.create_from_arg_string(text)


def test_likelihoods_and_named_templates_are_refused(lm: LanguageModel) -> None:
    model = HarnessModel(lm, GREEDY)
    for method in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(ValueError, match="no left-to-right likelihood.*not hellaswag"):
            method(requests([{}], task="hellaswag"))
    assert model.chat_template(True) == lm.tokenizer.get_chat_template()
    with pytest.raises(ValueError, match="not 'tool_use'; give --apply_chat_template without"):
        model.chat_template("tool_use")


def test_conversations_go_on_where_the_assistant_began(lm: LanguageModel) -> None:
    model = HarnessModel(lm, GREEDY)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "So"}]
    opened = model.apply_chat_template(turns[:1])
    assert model.apply_chat_template(turns, add_generation_prompt=False) == f"{opened}So"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mini", "choice"], "task choice is of output_type multiple_choice"),
        (["mini", "minni"], "has no task 'minni'; `lm_eval ls tasks` lists them"),
    ],
)
def test_tasks_are_checked_before_anything_is_decoded(
    lm: LanguageModel,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(TaskManager.__init__, "__defaults__", OWN_TASKS)
    monkeypatch.setattr(HarnessModel, "generate_until", _unexpected)
    with pytest.raises(ValueError, match=message):
        evaluate_tasks(lm, HarnessConfig(names, GREEDY, include_path=tasks), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_the_harness_s_command_line(
    tasks: Path, evaluated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """A real process, with the harness's own tasks left out."""
    program = (
        "import runpy, lm_eval.tasks as tasks\n"
        f"tasks.TaskManager.__init__.__defaults__ = {OWN_TASKS}\n"
        "runpy.run_module('t3d.interop.lm_eval', run_name='__main__')\n"
    )
    arguments = ["--model", "t3d", "--model_args", "pretrained=mini_teacher,denoising_steps=2"]
    arguments += ["--tasks", str(tasks / "mini.yaml"), "--limit", "3", "--batch_size", "3"]
    arguments += ["--apply_chat_template", "--log_samples", "--output_path", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "|mini" in done.stdout
    (file,) = (tmp_path / "mini_teacher").glob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["decodings"][0]["n"] == 3
    (file,) = (tmp_path / "mini_teacher").glob("samples_mini_*.jsonl")
    rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
    samples = json.loads((evaluated[1] / SAMPLES).read_text())["mini"][:3]
    assert [row["resps"] for row in rows] == [sample["resps"] for sample in samples]


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "t3d.interop.lm_eval")
    with pytest.raises(ValueError, match=r"pip install 't3d\[lm-eval\]'"):
        importlib.import_module("t3d.interop.lm_eval")
