"""Two tokenizers, small models around them, and a decoder that counts steps as JetEngine does."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from t3d.core.store import Manifest, TrajectoryStore
from t3d.core.trajectory import Trajectory
from t3d.models import LanguageModel, wrap
from t3d.tasks import get_task
from t3d.tasks.tokenizer import CHAT_TEMPLATE, train_tokenizer
from t3d.testing import tiny

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>"]


@pytest.fixture(scope="session")
def chars() -> LanguageModel:
    """Every character is a token: any ids but a few special ones survive as text."""
    alphabet = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz0123456789 \n.ABQUESTION"]
    words = Tokenizer(WordLevel({c: i for i, c in enumerate(dict.fromkeys(alphabet))}))
    words.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    words.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
    model = tiny(vocab_size=len(tokenizer))
    model.config.mask_token_id = None
    return wrap(model, tokenizer, "chars")


@pytest.fixture(scope="session")
def bpe() -> LanguageModel:
    """Byte-level BPE: most ids in random order are not what their text gives."""
    examples = get_task("mini_gsm").examples("train", 100)
    texts = [text for e in examples for text in (e.question, e.reference or "")]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    model = tiny(vocab_size=len(tokenizer))
    model.config.mask_token_id = None
    return wrap(model, tokenizer, "bpe")


@dataclass(frozen=True)
class Decoded:
    """What JetEngine would write, and what really happened."""

    step_map: list[int]
    steps: list[int]
    """Steps within blocks, from 0."""


def jetengine(num_tokens: int, prompt_length: int, block_size: int, rng: random.Random) -> Decoded:
    """Decode block after block, any positions a pass, at least one; then cut at `num_tokens`."""
    written: list[int] = []
    steps: list[int] = []
    passes = 0
    position = prompt_length
    while position < prompt_length + num_tokens:
        masked = list(range(position, (position // block_size + 1) * block_size))
        first, committed, step = masked[0], dict[int, tuple[int, int]](), 0
        while masked:
            passes += 1
            chosen = rng.sample(masked, rng.randint(1, len(masked)))
            committed |= dict.fromkeys(chosen, (passes, step))
            masked = [p for p in masked if p not in chosen]
            step += 1
        for p in range(first, first + len(committed)):
            written.append(committed[p][0])
            steps.append(committed[p][1])
        position = first + len(committed)
    return Decoded(written[:num_tokens], steps[:num_tokens])


def canonical(row: Trajectory, mask: int) -> Trajectory:
    """What rollout JSON can say of a trajectory: no more than that is lost."""
    start, num = len(row.prompt_ids), row.num_response_tokens
    block = [(start + i) // row.block_size for i in range(len(row.step_map))]
    steps = []
    for i, step in enumerate(row.step_map):
        same = {s for s, b in zip(row.step_map, block, strict=True) if b == block[i] and s >= 0}
        steps.append(len({s for s in same if s < step}))
    end = num - (start + num) % -row.block_size
    return Trajectory(
        prompt_id=row.prompt_id,
        prompt_ids=row.prompt_ids,
        response_ids=row.response_ids[:num] + [mask] * (end - num),
        initial_ids=[mask] * end,
        step_map=steps[:num] + [-1] * (end - num),
        log_probs=[0.0] * end,
        num_response_tokens=num,
        finish_reason=row.finish_reason,
        block_size=row.block_size,
        answer=row.answer,
    )


MakeStore = Callable[[Path, list[Trajectory]], TrajectoryStore]


@pytest.fixture(scope="session")
def make_store() -> MakeStore:
    def make(path: Path, rows: list[Trajectory]) -> TrajectoryStore:
        store = TrajectoryStore.create(path, Manifest("", len(rows), {}, "m", None, 0, {}))
        store.append(list(enumerate(rows)))
        return store

    return make
