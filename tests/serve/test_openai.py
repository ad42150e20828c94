"""The official client, unmodified, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

import t3d
from t3d.cli.main import main
from t3d.models.loading import LanguageModel
from tests.serve.conftest import QUESTION, Server, expected

MESSAGES: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, *, messages: Any = MESSAGES, **asked: Any) -> Any:
    more = {key: asked.pop(key) for key in [*asked] if key in t3d.DecodingConfig.__annotations__}
    # OpenAI's own names stay where they are.
    asked |= {key: more.pop(key) for key in ("temperature", "top_p") if key in more}
    return client.chat.completions.create(
        model="mini_teacher", messages=messages, extra_body=more, **asked
    )


def test_an_answer_is_that_of_generate(
    client: openai.OpenAI, lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = ask(client, seed=3, denoising_steps=2, temperature=0.7)
    options = ["--seed", "3", "--decoding.denoising_steps", "2", "--decoding.temperature", "0.7"]
    assert main(["generate", QUESTION, *options]) == 0
    [choice] = answer.choices
    assert choice.message.content == capsys.readouterr().out.removesuffix("\n")
    [own] = expected(lm, seed=3, denoising_steps=2, temperature=0.7)
    assert choice.token_ids == own.token_ids
    assert choice.step_map == own.step_map[: own.num_response_tokens]
    assert choice.finish_reason == own.finish_reason
    assert choice.passes["total"] == own.passes.total
    assert choice.passes["denoising"] == own.passes.denoising
    assert choice.tokens_per_forward == own.num_response_tokens / own.passes.denoising
    assert "".join(choice.texts) == choice.message.content
    assert answer.usage.completion_tokens == own.num_response_tokens
    assert answer.usage.prompt_tokens == len(lm.encode_prompt(QUESTION))
    assert (answer.seed, answer.decoding["denoising_steps"]) == (3, 2)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"denoising_steps": 1, "temperature": 0.0},
    {"block_size": 8, "denoising_steps": 4, "temperature": 1.0, "top_k": 5},
    {"remasking": "low_confidence_dynamic", "confidence_threshold": 0.6},
    {"remasking": "entropy_bounded", "entropy_bound": 0.5, "top_p": 0.9, "temperature": 0.8},
    {"remasking": "sequential", "draft_states": 4},
    {"random_share": 0.3, "temperature": 0.5},
]


def test_answers_under_load_are_those_of_generate(client: openai.OpenAI, lm: LanguageModel) -> None:
    problems = t3d.get_task("mini_week").examples("test", 14)
    cases = [(p.question, i, SETTINGS[i % len(SETTINGS)]) for i, p in enumerate(problems)]

    def call(case: tuple[str, int, dict[str, Any]]) -> list[int]:
        question, seed, setting = case
        messages = [{"role": "user", "content": question}]
        answer = ask(client, messages=messages, seed=seed, max_tokens=32, **setting)
        return answer.choices[0].token_ids

    with ThreadPoolExecutor(len(cases)) as pool:
        found = list(pool.map(call, cases))
    for (question, seed, setting), ids in zip(cases, found, strict=True):
        [own] = expected(lm, question, seed, max_new_tokens=32, **setting)
        assert ids == own.token_ids


@pytest.mark.parametrize("setting", [{"denoising_steps": 2}, {"draft_states": 4}])
def test_a_stream_has_the_same_text_and_every_commit(
    client: openai.OpenAI, lm: LanguageModel, setting: dict[str, Any]
) -> None:
    options = {"include_usage": True, "denoising": True}
    chunks = list(
        ask(client, seed=1, n=2, stream=True, stream_options=options, logprobs=True, **setting)
    )
    whole = ask(client, seed=1, n=2, logprobs=True, **setting)
    assert chunks[-1].usage == whole.usage
    texts, logprobs, ends = ["", ""], [[], []], [{}, {}]
    committed: list[dict[int, tuple[int, int]]] = [{}, {}]
    passes = [0, 0]
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        index = choice.index
        texts[index] += choice.delta.content or ""
        logprobs[index] += choice.logprobs.content if choice.logprobs else []
        if choice.finish_reason is not None:
            ends[index] = choice
        if (commit := (choice.model_extra or {}).get("denoising")) is not None:
            assert passes[index] <= commit["pass"]
            passes[index] = commit["pass"]
            for place, token in zip(commit["positions"], commit["token_ids"], strict=True):
                assert place not in committed[index]
                committed[index][place] = token, commit["step"]
    for choice in whole.choices:
        end: Any = ends[choice.index]
        assert texts[choice.index] == choice.message.content
        assert logprobs[choice.index] == choice.logprobs.content
        assert (end.step_map, end.passes) == (choice.step_map, choice.passes)
        assert end.token_ids == choice.token_ids
        said = [committed[choice.index][place] for place in range(len(choice.token_ids))]
        assert said == list(zip(choice.token_ids, choice.step_map, strict=True))
        assert passes[choice.index] == choice.passes["total"]


def test_without_denoising_chunks_are_text_in_order(client: openai.OpenAI) -> None:
    chunks = list(ask(client, seed=1, stream=True))
    opening, *pieces, end = (choice for chunk in chunks for choice in chunk.choices)
    assert opening.delta.role == "assistant"
    assert opening.layout["block_size"] == 4
    assert all(piece.delta.content and "denoising" not in piece.model_extra for piece in pieces)
    assert len(pieces) > 5
    assert end.finish_reason == "stop"
    assert chunks[0].seed == 1


def test_each_choice_has_a_key_of_the_seed(client: openai.OpenAI, lm: LanguageModel) -> None:
    answer = ask(client, seed=5, n=3, temperature=1.0)
    own = expected(lm, seed=5, num=3, temperature=1.0)
    assert [choice.token_ids for choice in answer.choices] == [c.token_ids for c in own]
    assert len({choice.message.content for choice in answer.choices}) > 1
    without = [ask(client, temperature=1.0).seed for _ in range(2)]
    assert without[0] != without[1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_itself(client: openai.OpenAI, stream: bool) -> None:
    whole = ask(client, seed=0).choices[0].message.content
    stop = whole[15:22]
    asked = {"seed": 0, "stop": [stop, "nosuch"]}
    if stream:
        choices = [chunk.choices[0] for chunk in ask(client, stream=True, **asked)]
        text = "".join(choice.delta.content or "" for choice in choices)
        choice = choices[-1]
    else:
        [choice] = ask(client, **asked).choices
        text = choice.message.content
    assert text == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"
    # Tokens up to the one that completes it.
    read = "".join(choice.texts)
    assert read.startswith(text + stop)
    assert stop not in "".join(choice.texts[:-1])


def test_logprobs_are_those_of_the_commits(client: openai.OpenAI, lm: LanguageModel) -> None:
    [choice] = ask(client, seed=0, temperature=0.0, logprobs=True, top_logprobs=3).choices
    [own] = expected(lm, temperature=0.0)
    content = choice.logprobs.content
    assert "".join(token.token for token in content) == choice.message.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == choice.message.content
    assert [token.logprob for token in content] == pytest.approx(
        own.log_probs[: len(content)], abs=1e-4
    )
    for token in content:
        values = [other.logprob for other in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        # At temperature 0 the likeliest token is the one that is committed.
        assert token.token == token.top_logprobs[0].token
        assert token.logprob == pytest.approx(values[0], abs=1e-5)


def test_completions_continue_a_prompt_as_it_stands(
    client: openai.OpenAI, lm: LanguageModel
) -> None:
    text = lm.template([{"role": "user", "content": QUESTION}])
    ids = lm.encode_prompt(QUESTION)
    [own] = expected(lm, seed=2)
    prompts: list[Any] = [text, ids, [text], [ids]]
    for prompt in prompts:
        answer = client.completions.create(model="again", prompt=prompt, seed=2, logprobs=2)
        [choice] = answer.choices
        assert choice.text == lm.decode(own.token_ids)
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or []) == choice.text
        for offset, token in zip(
            choice.logprobs.text_offset or [], choice.logprobs.tokens or [], strict=True
        ):
            assert choice.text[offset:].startswith(token)
    both = client.completions.create(model="again", prompt=[text, text], seed=2, n=2)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == lm.decode(own.token_ids)
    stream = client.completions.create(model="again", prompt=text, seed=2, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == lm.decode(own.token_ids)


def test_tokens_are_cut_to_what_fits(client: openai.OpenAI, lm: LanguageModel) -> None:
    [choice] = ask(client, max_tokens=7, seed=0).choices
    assert (len(choice.token_ids), choice.finish_reason) == (7, "length")
    [choice] = ask(client, max_completion_tokens=100_000, seed=0).choices
    room = lm.model.config.max_position_embeddings - len(lm.encode_prompt(QUESTION))
    assert choice.layout["max_tokens"] == room


def test_models_and_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mini_teacher", "again"]
    assert client.models.retrieve("again").id == "again"
    with pytest.raises(openai.NotFoundError, match="did you mean mini_teacher?"):
        client.chat.completions.create(model="mini_teachr", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="window must divide block_size=4"):
        ask(client, window=3)
    with pytest.raises(openai.BadRequestError, match="tools.* is not supported here"):
        ask(client, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
