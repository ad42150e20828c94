"""Chats and texts to learn from: a user's own file, or a data set of the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from t3d.core.files import check_regular, first_words
from t3d.core.ranges import check_ranges
from t3d.tasks.records import check_text, read_json_lines

OverLong = Literal["drop", "cut"]
LONGEST = 1024
"""Tokens of a sequence at most where nothing else is asked for."""
_KNOWN = (
    ("messages",),
    ("question", "reference"),
    ("question", "answer"),
    ("prompt", "response"),
    ("text",),
)
"""Keys that are looked for in the first row, in this order."""


@dataclass
class ChatData:
    """Rows of chats, of prompts with responses, or of plain text.

    Without keys the first row decides: messages, else question and reference (a worked answer, as
    tasks have it), else question and answer, else prompt and response, else text.

    Args:
        path: a .jsonl or .parquet file; or, for the package datasets, a folder or a Hub name.
        subset: of a data set that has several.
        split: of a folder or a Hub name.
        messages: key of a chat, a list of turns with role and content; the last one is the
            assistant's and is learned.
        prompt: key of the user's turn.
        response: key of the answer to it, which is learned.
        text: key of plain text, all of which is learned.
        max_length: tokens of a sequence at most; by default 1024, or the model's positions where it
            has fewer.
        over_long: drop longer ones, or cut their responses.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    messages: str | None = None
    prompt: str | None = None
    response: str | None = None
    text: str | None = None
    max_length: int | None = None
    over_long: OverLong = "drop"

    def __post_init__(self) -> None:
        check_ranges(self, {"[1, inf)": "max_length"}, where="data: ")
        if (self.prompt is None) != (self.response is None):
            raise ValueError("data: prompt and response are a pair; name both keys")
        if sum(key is not None for key in (self.messages, self.prompt, self.text)) > 1:
            raise ValueError("data: rows are messages, or prompt and response, or text; name one")

    def longest(self, positions: int, model: str) -> int:
        """Tokens of a sequence at most, for a model of so many positions.

        Raises:
            ValueError: if more are asked for.
        """
        if self.max_length is not None and self.max_length > positions:
            raise ValueError(
                f"data: max_length={self.max_length} is beyond the {positions} positions of {model}"
            )
        return min(LONGEST, positions) if self.max_length is None else self.max_length

    @property
    def is_file(self) -> bool:
        return Path(self.path).suffix in (".jsonl", ".parquet")


@dataclass(frozen=True)
class Chat:
    """What is given, and what is to be learned."""

    name: str
    """File and row, for messages."""
    prompt: list[dict[str, str]]
    """Turns with role and content; none for plain text."""
    response: str


def read_chats(data: ChatData, num: int) -> list[Chat]:
    """The first `num` rows.

    Raises:
        ValueError: naming file, row and key, for whatever cannot be taken.
    """
    chats: list[Chat] = []
    keys: tuple[str, ...] = ()
    for name, row in islice(_rows(data), num):
        try:
            if not isinstance(row, dict):
                raise ValueError("not an object with keys")
            keys = keys or _keys(data, row)
            is_chat = data.text is None and keys == (data.messages or "messages",)
            chats.append(_parse(name, row, keys, is_chat=is_chat))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if not chats:
        raise ValueError(f"{data.path}: holds no rows")
    return chats


def _rows(data: ChatData) -> Iterator[tuple[str, Any]]:
    """Rows and how to name them."""
    path = Path(data.path)
    if path.suffix == ".jsonl":
        for number, row in read_json_lines(path):
            yield f"{path}, line {number}", row
        return
    rows = _parquet(path) if path.suffix == ".parquet" else _dataset(data)
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_regular(path)
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {first_words(error)}") from error


def _dataset(data: ChatData) -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            f"{data.path}: neither .jsonl nor .parquet, so it needs the package datasets; "
            "pip install 't3d[datasets]'"
        ) from None
    try:
        return load_dataset(data.path, data.subset, split=data.split)
    # The library raises errors of many kinds.
    except Exception as error:
        raise ValueError(
            f"{data.path}: cannot be loaded as a data set (subset {data.subset}, "
            f"split {data.split}): {first_words(error)}"
        ) from error


def _keys(data: ChatData, row: dict[str, Any]) -> tuple[str, ...]:
    """One key of messages or of text, or two of prompt and response."""
    for named in ((data.messages,), (data.prompt, data.response), (data.text,)):
        keys = tuple(key for key in named if key is not None)
        if keys:
            return keys
    for keys in _KNOWN:
        if all(key in row for key in keys):
            return keys
    raise ValueError(
        f"has the keys {', '.join(row) or 'none'}; name those to read as data.messages, "
        "data.prompt and data.response, or data.text"
    )


def _parse(name: str, row: dict[str, Any], keys: tuple[str, ...], *, is_chat: bool) -> Chat:
    missing = next((key for key in keys if key not in row), None)
    if missing is not None:
        raise ValueError(f"lacks the key {missing!r}")
    if is_chat:
        return _parse_messages(name, row[keys[0]], keys[0])
    *prompt, response = (check_text(row[key], key) for key in keys)
    return Chat(name, [{"role": "user", "content": text} for text in prompt], response)


def _parse_messages(name: str, turns: Any, key: str) -> Chat:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{key!r} must be a list of turns, got {turns!r:.60}")
    chat: list[dict[str, str]] = []
    for number, turn in enumerate(turns):
        where = f"{key}[{number}]"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise ValueError(f"{where} must have 'role' and 'content', is {turn!r:.60}")
        role = check_text(turn["role"], f"{where}.role")
        # A system's turn may be empty, an answer may not.
        content = turn["content"]
        if number == len(turns) - 1 or not isinstance(content, str):
            content = check_text(content, f"{where}.content")
        chat.append({"role": role, "content": content})
    if chat[-1]["role"] != "assistant":
        raise ValueError(
            f"{key!r} must end with the assistant's turn, ends with {chat[-1]['role']!r}"
        )
    if len(chat) == 1:
        raise ValueError(f"{key!r} must have a turn before the assistant's")
    return Chat(name, chat[:-1], chat[-1]["content"])
