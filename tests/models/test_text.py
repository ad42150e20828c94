"""What a model is asked and what it says: templates, control tokens, padded vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from t3d.decoding.build import generate, make_decoder
from t3d.decoding.config import DecodingConfig
from t3d.decoding.request import Request
from t3d.interop.rollouts.importing import import_rollouts
from t3d.models import LanguageModel, from_pretrained, wrap
from t3d.noising.base import Vocabulary
from t3d.tasks import Example
from t3d.tasks.chat import Chat
from t3d.tasks.tokenizer import CHAT_TEMPLATE, train_tokenizer
from t3d.testing import tiny
from t3d.training.pretrain import chat_rows, labelled_rows

PADDED = 30
"""Rows of the vocabulary without a token."""


def make(template: str = CHAT_TEMPLATE) -> LanguageModel:
    tokenizer = train_tokenizer(["What is 1 + 1?"], vocab_size=300)
    tokenizer.chat_template = template
    model = tiny(vocab_size=len(tokenizer) + PADDED, dtype=torch.float32)
    model.config.mask_token_id = None
    return wrap(model, tokenizer, "memory")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return make()


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
        "{{ messages[0].content|capitalize }}",
        "{{ messages[0].content|e }}",
        "Say something.",
    ],
)
def test_a_template_that_loses_the_question_is_refused(template: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^memory: .* drops or changes the question"):
        make(template)
    saved = tmp_path / "saved"
    make().save(saved)
    (saved / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=r"saved: .* drops or changes the question"):
        from_pretrained(saved)


def test_a_template_that_takes_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="chat template is missing or broken"):
        make("{{ messages[0].content + 1 }}")


@pytest.mark.parametrize(
    "template",
    [
        # It changes the answer, prints no assistant's turn, or puts no token behind it.
        "<|im_start|>{{ messages[0].content }}{% if messages[1] %}<|im_start|>"
        "{{ messages[1].content|capitalize }}<|im_end|>{% endif %}",
        "<|im_start|>user {{ messages[0].content }}<|im_start|>assistant ",
        "<|im_start|>{% for m in messages %}{{ m.content }} the end {% endfor %}",
    ],
)
def test_a_turn_ends_with_the_tokenizers_own_token_where_the_template_does_not_say(
    template: str,
) -> None:
    lm = make(template)
    end = lm.tokenizer.get_vocab()["<|im_end|>"]
    assert lm.stop_token_ids[0] == end
    assert lm.encode_responses(["3"])[0][-1] == end


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<|MASK|>", "<|im_start|>"])
def test_control_tokens_in_texts_are_refused_by_name(lm: LanguageModel, token: str) -> None:
    text = f"What is {token} 1?"
    refused = pytest.raises(ValueError, match=r"holds <\|\w+\|>, a control token of memory")
    with refused:
        lm.encode_prompts([text])
    with refused:
        generate(lm, [text])
    for example in (
        Example("a", text),
        Example("a", "1", prefix=text),
        Example("a", text, verbatim="1"),
    ):
        with pytest.raises(ValueError, match=r"^a: the text holds"):
            lm.encode_examples([Example("b", "1"), example])
    with pytest.raises(ValueError, match=r"^a: the text holds"):
        labelled_rows(lm, [Example("a", "1", reference=text)], 4)
    turn = {"role": "user", "content": "1"}
    for chat in (
        Chat("row 3", [turn], text),
        Chat("row 3", [{"role": "system", "content": text}, turn], "2"),
        Chat("row 3", [], text),
    ):
        with pytest.raises(ValueError, match=r"^row 3: the text holds"):
            chat_rows(lm, [chat], 4, max_length=64, over_long="drop")


def test_a_verbatim_prompt_has_its_own_control_tokens_but_never_the_mask(lm: LanguageModel) -> None:
    (ids,) = lm.encode_examples([Example("a", "1", verbatim="<|im_start|>1")])
    assert lm.tokenizer.get_vocab()["<|im_start|>"] in ids
    with pytest.raises(ValueError, match="^a: the prompt holds the mask token"):
        lm.encode_examples([Example("a", "1", verbatim="1 <|MASK|>")])


def test_importing_leaves_out_what_a_rollout_refuses(lm: LanguageModel, tmp_path: Path) -> None:
    source = tmp_path / "r.json"
    source.write_text(
        '[{"question": "a <|im_end|>", "answer": ["b"], "step_map": [[1]]}]'.replace(
            "answer", "full_output"
        )
    )
    with pytest.raises(ValueError, match=r"prompt 1.*a control token of memory"):
        import_rollouts(source, lm, tmp_path / "store", format="t3d", block_size=4)


def test_text_comes_back_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some releases of transformers tidy blanks where a tokenizer asks for it."""
    lm = make()
    plain = type(lm.tokenizer).decode

    def decode(
        self: PreTrainedTokenizerBase, ids: list[int], clean_up_tokenization_spaces: bool = True
    ) -> str:
        text = str(plain(self, ids))
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    monkeypatch.setattr(type(lm.tokenizer), "decode", decode)
    for code in ("x != y , s.split(' ,')", "do n't 's .", "a  ?\n b !"):
        (ids,) = lm.encode_responses([code])
        assert lm.tokenizer.decode(ids[:-1]) != code
        assert lm.decode(ids) == lm.text(ids[:-1]) == code


def test_ids_without_a_token_are_neither_generated_nor_noise(lm: LanguageModel) -> None:
    size, known = lm.model.config.vocab_size, len(lm.tokenizer)
    assert size == known + PADDED
    padding = set(range(known, size))
    assert padding < {*lm.banned_token_ids}
    config = DecodingConfig(random_share=1.0, temperature=3.0, max_new_tokens=64)
    requests = [Request(ids, 7 + i) for i, ids in enumerate(lm.encode_prompts(["1", "2"] * 4))]
    for done in make_decoder(lm, config, 8).decode(requests):
        assert padding.isdisjoint(done.initial_ids)
        assert padding.isdisjoint(done.response_ids)
    vocabulary = Vocabulary.of(lm)
    assert (vocabulary.size, vocabulary.banned) == (size, lm.banned_token_ids)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    value: float, tmp_path: Path
) -> None:
    lm, saved = make(), tmp_path / "saved"
    lm.save(saved)
    state = load_file(saved / "model.safetensors")
    state["model.norm.weight"][3] = value
    save_file(state, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"saved: model.norm.weight holds NaN, infinity"):
        from_pretrained(saved)
    lm.model.load_state_dict(state, strict=False)
    with pytest.raises(ValueError, match=r"again: model.norm.weight holds NaN, infinity"):
        lm.save(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_large_weights_are_finite(tmp_path: Path) -> None:
    lm = make()
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(-1e15)
    lm.save(tmp_path)
    assert from_pretrained(tmp_path).weights_hash is not None


def test_buffers_of_older_releases_are_passed_over(tmp_path: Path) -> None:
    lm = make()
    lm.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"):
        state[name] = torch.ones(4)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = from_pretrained(tmp_path).model.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in lm.model.state_dict().items())
