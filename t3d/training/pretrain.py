"""Train a block-diffusion model on labelled answers with the NELBO, from scratch or further.

Further training adapts a checkpoint: one that was converted from an autoregressive model
(`t3d.models.convert`), or one that decodes block by block already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from t3d.core.files import hash_file, read_object
from t3d.core.trajectory import labelled_row
from t3d.grading.math import last_boxed
from t3d.models import LanguageModel, SDARConfig, SDARForCausalLM, from_pretrained, wrap
from t3d.models.tokenizers import BUILT_IN
from t3d.tasks.base import Example
from t3d.tasks.chat import Chat, ChatData, OverLong, read_chats
from t3d.tasks.tokenizer import END_TOKEN, PAD_TOKEN, train_tokenizer
from t3d.training.config import MethodConfig, PretrainConfig
from t3d.training.methods import Method, build_method
from t3d.training.run import check_block_sizes, train

_NUM_TEXTS = 8000
"""Largest number of texts from which a tokenizer is learned."""


def pretraining_method(config: PretrainConfig) -> Method:
    """The NELBO on masked copies of labelled answers.

    Raises:
        ValueError: for a setting that does not fit.
    """
    noiser = {"num_views": config.num_views, "weighting": config.weighting}
    return build_method(MethodConfig("sft", noiser=noiser))


def new_model(config: PretrainConfig, texts: Sequence[str]) -> LanguageModel:
    """A random model and a tokenizer learned from the texts."""
    tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    shape = asdict(config.shape)
    theta = shape.pop("rope_theta")
    with torch.random.fork_rng():
        torch.manual_seed(config.training.seed)
        settings = SDARConfig(
            vocab_size=len(tokenizer),
            block_size=min(config.training.block_sizes),
            pad_token_id=vocabulary[PAD_TOKEN],
            eos_token_id=vocabulary[END_TOKEN],
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            **shape,
        )
        model = SDARForCausalLM(settings)
        # With the library's standard deviation of 0.02, the vectors of words that are used alike,
        # such as names, become equal before the model tells them apart, and it never learns to copy
        # them.
        embedding = model.model.embed_tokens.weight
        torch.nn.init.normal_(embedding, std=config.shape.hidden_size**-0.5)
    return wrap(model, tokenizer, "new")


def check_labelled(lm: LanguageModel, examples: list[Example], block_size: int) -> None:
    """Check that examples can be training rows.

    Raises:
        ValueError: if an example has no worked answer, or one that lacks the example's final
            answer, or holds a control token, or if a block is longer than the model.
    """
    check_block_sizes(lm, [block_size])
    for example in examples:
        if example.reference is None:
            raise ValueError(
                f"{example.id}: labelled training needs a worked answer; "
                "a line of your own has it as 'reference'"
            )
        if example.answer is not None and last_boxed(example.reference) is None:
            raise ValueError(
                f"{example.id}: the worked answer has no \\boxed{{}}, in which a final answer is "
                f"read; end it with \\boxed{{{example.answer}}}"
            )
        lm.check_content(example.id, example.reference)


def labelled_rows(
    lm: LanguageModel, examples: list[Example], block_size: int
) -> list[dict[str, Any]]:
    """Examples with worked answers as training rows.

    Raises:
        ValueError: as `check_labelled` does.
    """
    check_labelled(lm, examples, block_size)
    prompts = lm.encode_examples(examples)
    responses = lm.encode_responses([e.reference or "" for e in examples])
    pairs = enumerate(zip(prompts, responses, strict=True))
    return [_row(lm, *pair, index, block_size) for index, pair in pairs]


def _row(
    lm: LanguageModel, prompt: list[int], response: list[int], index: int, block_size: int
) -> dict[str, Any]:
    ids = {"fill_id": lm.pad_token_id, "mask_id": lm.mask_token_id}
    return labelled_row(prompt, response, index, **ids, block_size=block_size)


@dataclass(frozen=True)
class RowCounts:
    """Counts of the rows of a data set: used, cut and dropped."""

    rows: int
    cut: int
    """Number of rows whose response was cut."""
    dropped: int
    """Number of rows that were left out because they are too long."""


def chat_rows(
    lm: LanguageModel,
    chats: Sequence[Chat],
    block_size: int,
    *,
    max_length: int,
    over_long: OverLong,
) -> tuple[list[dict[str, Any]], RowCounts]:
    """Chats and texts as training rows.

    A prompt takes no loss; it is what the tokenizer's chat template makes of it. A response ends
    as an assistant's turn does, a text with the last of the stop tokens, and both fill their
    last block as `labelled_row` has it. A response that is cut has no end, and nothing to fill.

    Args:
        max_length: largest number of tokens of a row.
        over_long: whether longer rows are dropped, or their responses cut at whole blocks; a row
            whose prompt leaves no room for a block is dropped in either case.

    Raises:
        ValueError: for turns that the chat template refuses, and texts with a control token.
    """
    for chat in chats:
        contents = [text for turn in chat.prompt for text in turn.values()]
        lm.check_content(chat.name, *contents, chat.response)
    end = max_length - max_length % block_size
    prompts = lm.tokenizer([_render(lm, chat) for chat in chats], add_special_tokens=False)
    responses = lm.encode_responses([chat.response for chat in chats])
    rows: list[dict[str, Any]] = []
    num_cut = 0
    for chat, prompt, response in zip(chats, prompts["input_ids"], responses, strict=True):
        if not chat.prompt:
            response[-1] = lm.stop_token_ids[-1]
        if len(prompt) + len(response) > end:
            if over_long == "drop" or len(prompt) >= end:
                continue
            response = response[: end - len(prompt)]
            num_cut += 1
        rows.append(_row(lm, prompt, response, len(rows), block_size))
    return rows, RowCounts(len(rows), num_cut, len(chats) - len(rows))


def _render(lm: LanguageModel, chat: Chat) -> str:
    """The prompt up to where the assistant's turn begins; empty for plain text."""
    if not chat.prompt:
        return ""
    try:
        return lm.template(chat.prompt)
    # A template is a program of the checkpoint, which may raise anything.
    except Exception as error:
        raise ValueError(f"{chat.name}: the chat template refuses the turns: {error}") from error


def _adaptation_rows(
    lm: LanguageModel, config: PretrainConfig, data: ChatData, chats: Sequence[Chat]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Training rows of chats or texts, and a record of them for the provenance."""
    max_length = data.longest(lm.model.config.max_position_embeddings, lm.name)
    size, batch = max(config.training.block_sizes), config.training.batch_size
    check_block_sizes(lm, [size])
    rows, counts = chat_rows(lm, chats, size, max_length=max_length, over_long=data.over_long)
    if counts.cut or counts.dropped:
        print(
            f"{data.path}: {counts.rows} rows; max_length={max_length} cut {counts.cut} of "
            f"them and dropped {counts.dropped} others",
            file=sys.stderr,
        )
    if len(rows) < batch:
        raise ValueError(
            f"{data.path}: {len(rows)} rows are fewer than batch_size={batch}"
            + (f"; {counts.dropped} are longer than max_length" if counts.dropped else "")
        )
    found = hash_file(Path(data.path)) if data.is_file else None
    return rows, {"path": data.path, "hash": found, **asdict(counts)}


def _all_response(row: dict[str, Any], mask_id: int) -> dict[str, Any]:
    """The same row with its prompt as response, so that all tokens take loss.

    Its last block is filled already.
    """
    ids = row["input_ids"]
    return labelled_row([], ids, row["index"], fill_id=mask_id, mask_id=mask_id, block_size=1)


@dataclass(frozen=True)
class Lesson:
    """A model and its training rows."""

    lm: LanguageModel
    rows: list[dict[str, Any]]
    source: dict[str, Any]
    """Record of where the rows came from, for the provenance."""


def read_lesson(config: PretrainConfig) -> Lesson:
    """Load or build the model and read its training rows.

    The number of rows that are too long is printed on stderr; of `config.data` it is recorded in
    the provenance.

    Raises:
        ValueError: for an unknown task, data that cannot be read, or fewer rows than one batch
            takes.
    """
    block_sizes, data = config.training.block_sizes, config.data
    examples = [] if data is not None else config.examples()
    chats = [] if data is None else read_chats(data, config.num_examples)
    if config.model is None:
        texts = [text for e in examples for text in (e.question, e.reference or "")]
        for chat in chats:
            texts += [*(turn["content"] for turn in chat.prompt), chat.response]
        lm = new_model(config, texts[:_NUM_TEXTS])
    else:
        lm = from_pretrained(config.model, block_size=min(block_sizes))
    if data is not None:
        rows, source = _adaptation_rows(lm, config, data, chats)
    else:
        rows, source = labelled_rows(lm, examples, max(block_sizes)), {"task": config.task}
        _tell_long(lm, rows)
    config.training.check_enough(len(rows))
    if config.prompt_loss:
        rows = [_all_response(row, lm.mask_token_id) for row in rows]
    return Lesson(lm, rows, source)


def _tell_long(lm: LanguageModel, rows: Sequence[dict[str, Any]]) -> None:
    positions = lm.model.config.max_position_embeddings
    num = sum(len(row["input_ids"]) > positions for row in rows)
    if num:
        print(
            f"t3d: {num} of {len(rows)} sequences are longer than the model's {positions} "
            "positions, where decoding ends; give a new model more by "
            "shape.max_position_embeddings",
            file=sys.stderr,
        )


def pretrain(
    config: PretrainConfig, output: Path, *, lesson: Lesson | None = None, progress: bool = True
) -> Path:
    """Train and save a checkpoint; a killed run continues from the last one that it wrote.

    Args:
        lesson: result of `read_lesson`, where it has been called already.

    Returns:
        The checkpoint's directory, `output` itself.

    Raises:
        ValueError: as `read_lesson` does.
    """
    lesson = lesson or read_lesson(config)
    lm = lesson.lm
    notes: dict[str, Any] = {"data": lesson.source}
    if config.model is not None:
        base = BUILT_IN.get(config.model, Path(config.model)) / "provenance.json"
        # Copied, because the base's directory may be gone when somebody reads its name.
        notes["base"] = read_object(base) if base.is_file() else None
    train(
        lm,
        pretraining_method(config),
        lesson.rows,
        config.training,
        output,
        config=asdict(config),
        notes=notes,
        progress=progress,
    )
    return output
