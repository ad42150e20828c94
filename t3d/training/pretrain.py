"""Train a block-diffusion model on labelled answers with the NELBO, from scratch or further.

Further means that a checkpoint is adapted: one that was converted from an autoregressive model
(`t3d.models.convert`), or one that knows block diffusion already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from t3d.models import (
    LanguageModel,
    SDARConfig,
    SDARForCausalLM,
    from_pretrained,
    wrap,
)
from t3d.models.loading import BUILT_IN
from t3d.provenance import hash_file, hash_weights, provenance, write_json
from t3d.shards import read_object
from t3d.tasks.base import Example
from t3d.tasks.chat import Chat, ChatData, OverLong, read_chats
from t3d.tasks.tokenizer import END_TOKEN, PAD_TOKEN, train_tokenizer
from t3d.training.config import MethodConfig, PretrainConfig
from t3d.training.methods import Method, build_method
from t3d.training.run import check_block_sizes, fit, remove_checkpoints
from t3d.trajectory import labelled_row


def pretraining_method(config: PretrainConfig) -> Method:
    """The NELBO on masked copies of labelled answers.

    Raises:
        ValueError: for a setting that does not fit.
    """
    noiser = {"num_views": config.num_views, "weighting": config.weighting}
    return build_method(MethodConfig("sft", noiser=noiser))


def new_model(config: PretrainConfig, examples: list[Example]) -> LanguageModel:
    """A random model and a tokenizer learned from the examples."""
    texts = [text for e in examples[:4000] for text in (e.question, e.reference or "")]
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
        # At the library's 0.02 words that are used alike, such as names, grow into one vector
        # before the model tells them apart, and it never learns to copy them.
        embedding = model.model.embed_tokens.weight
        torch.nn.init.normal_(embedding, std=config.shape.hidden_size**-0.5)
    return wrap(model, tokenizer, "new")


def labelled_rows(
    lm: LanguageModel, examples: list[Example], block_size: int
) -> list[dict[str, Any]]:
    """Examples with worked answers as training rows.

    Raises:
        ValueError: if an example has no worked answer, or holds a control token, or a block is
            longer than the model.
    """
    check_block_sizes(lm, [block_size])
    unanswered = next((e.id for e in examples if e.reference is None), None)
    if unanswered is not None:
        raise ValueError(f"{unanswered}: labelled training needs a worked answer")
    for example in examples:
        lm.check_content(example.id, example.reference or "")
    prompts = lm.encode_examples(examples)
    responses = lm.encode_responses([e.reference or "" for e in examples])
    return [
        labelled_row(
            prompt,
            response,
            index,
            fill_id=lm.pad_token_id,
            mask_id=lm.mask_token_id,
            block_size=block_size,
        )
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows of a data set."""

    rows: int
    cut: int
    """Rows whose response was cut."""
    dropped: int
    """Rows that are too long."""


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
        max_length: tokens of a row at most.
        over_long: drop longer ones, or cut their responses at whole blocks; a row whose prompt
            leaves no room for one is dropped all the same.

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
        rows.append(
            labelled_row(
                prompt,
                response,
                len(rows),
                fill_id=lm.pad_token_id,
                mask_id=lm.mask_token_id,
                block_size=block_size,
            )
        )
    return rows, RowCounts(len(rows), num_cut, len(chats) - len(rows))


def _render(lm: LanguageModel, chat: Chat) -> str:
    """The prompt up to where the assistant's turn begins; empty for plain text."""
    if not chat.prompt:
        return ""
    try:
        return str(
            lm.tokenizer.apply_chat_template(
                chat.prompt, tokenize=False, add_generation_prompt=True
            )
        )
    # It is a program of the checkpoint's, which may raise anything.
    except Exception as error:
        raise ValueError(f"{chat.name}: the chat template refuses the turns: {error}") from error


def _adaptation_rows(
    lm: LanguageModel, config: PretrainConfig, data: ChatData
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Training rows of chats or texts, and what provenance says of them."""
    positions = lm.model.config.max_position_embeddings
    if data.max_length > positions:
        raise ValueError(
            f"data: max_length={data.max_length} is beyond the {positions} positions of {lm.name}"
        )
    size, batch = max(config.training.block_sizes), config.training.batch_size
    check_block_sizes(lm, [size])
    rows, counts = chat_rows(
        lm,
        read_chats(data, config.num_examples),
        size,
        max_length=data.max_length,
        over_long=data.over_long,
    )
    if counts.cut or counts.dropped:
        print(
            f"{data.path}: {counts.rows} rows; max_length={data.max_length} cut {counts.cut} of "
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
    """The row without a prompt: all of its tokens take loss. Its last block is filled already."""
    ids = row["input_ids"]
    return labelled_row([], ids, row["index"], fill_id=mask_id, mask_id=mask_id, block_size=1)


def pretrain(config: PretrainConfig, output: Path, *, progress: bool = True) -> Path:
    """Train and save a checkpoint; a killed run continues from the last one on its way.

    Rows of `config.data` that are too long are told on stderr and in the provenance.

    Returns:
        The checkpoint's directory, `output` itself.

    Raises:
        ValueError: for an unknown task, data that cannot be read, or fewer problems than one
            batch takes.
    """
    block_sizes = config.training.block_sizes
    examples = [] if config.data is not None else config.examples()
    if config.model is None:
        lm = new_model(config, examples)
    else:
        lm = from_pretrained(config.model, block_size=min(block_sizes))
    source: dict[str, Any] = {"task": config.task}
    if config.data is None:
        rows = labelled_rows(lm, examples, max(block_sizes))
    else:
        rows, source = _adaptation_rows(lm, config, config.data)
    if config.prompt_loss:
        rows = [_all_response(row, lm.mask_token_id) for row in rows]
    directory = output / "training"
    trainer = fit(
        lm, pretraining_method(config), rows, config.training, directory, progress=progress
    )
    trainer.save_trained(output)
    record = provenance(
        config=asdict(config),
        seed=config.training.seed,
        model=lm.name,
        weights_hash=hash_weights(output),
    )
    record["data"] = source
    if config.model is not None:
        base = BUILT_IN.get(config.model, Path(config.model)) / "provenance.json"
        # By itself the name of a directory says little once the directory is gone.
        record["base"] = read_object(base) if base.is_file() else None
    record["optimizer_steps"] = trainer.state.global_step
    record["tokens_seen"] = trainer.state.num_input_tokens_seen
    if trainer.args.should_save:
        write_json(output / "provenance.json", record)
        remove_checkpoints(directory)
    return output
