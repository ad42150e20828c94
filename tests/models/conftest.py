from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from t3d.tasks.tokenizer import CHAT_TEMPLATE, MASK_TOKEN, train_tokenizer
from tests.models.sources import TEXT


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Without a mask token."""
    whole = train_tokenizer([TEXT] * 4, vocab_size=320)
    document = json.loads(whole.backend_tokenizer.to_str())
    assert document["added_tokens"].pop()["content"] == MASK_TOKEN
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
