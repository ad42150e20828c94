"""Chats and texts come out of every kind of file as they stand there, or are named."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.tasks.chat import Chat, ChatData, read_chats

Row = dict[str, Any]


def write(path: Path, rows: Sequence[Any]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([*rows]), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def turns(*contents: str, first: str = "user") -> list[Row]:
    roles = ["user", "assistant"] * len(contents)
    return [
        {"role": role, "content": content}
        for role, content in zip(roles[first != "user" :], contents, strict=False)
    ]


def what(chats: list[Chat]) -> list[tuple[list[str], str]]:
    return [([turn["content"] for turn in chat.prompt], chat.response) for chat in chats]


BLANKLESS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
PAIRS = st.lists(st.tuples(BLANKLESS, BLANKLESS), min_size=1, max_size=5)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@settings(max_examples=20)
@given(pairs=PAIRS)
def test_every_text_survives_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("chat") / f"a{suffix}"
    name = write(path, [{"prompt": p, "response": r} for p, r in pairs])
    assert what(read_chats(ChatData(name), 10)) == [([p], r) for p, r in pairs]
    chats = [{"messages": turns(p, r, p, r)} for p, r in pairs]
    name = write(path, chats)
    assert what(read_chats(ChatData(name), 10)) == [([p, r, p], r) for p, r in pairs]


FORMATS: dict[str, tuple[Row, dict[str, Any], tuple[list[str], str]]] = {
    "messages": ({"messages": turns("q", "a")}, {}, (["q"], "a")),
    "before the others": ({"messages": turns("q", "a"), "text": "t"}, {}, (["q"], "a")),
    "question": ({"question": "q", "answer": "a", "id": 3}, {}, (["q"], "a")),
    "prompt": ({"prompt": "q", "response": "a"}, {}, (["q"], "a")),
    "text": ({"text": "t"}, {}, ([], "t")),
    "named pair": (
        {"in": "q", "out": "a", "text": "t"},
        {"prompt": "in", "response": "out"},
        (["q"], "a"),
    ),
    "named chat": ({"chat": turns("q", "a"), "text": "t"}, {"messages": "chat"}, (["q"], "a")),
    "named text": ({"messages": "t"}, {"text": "messages"}, ([], "t")),
    "system": (
        {"messages": [{"role": "system", "content": ""}, *turns("q", "a")]},
        {},
        (["", "q"], "a"),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_given_and_what_is_learned(tmp_path: Path, name: str) -> None:
    row, keys, expected = FORMATS[name]
    (chat,) = read_chats(ChatData(write(tmp_path / "a.jsonl", [row]), **keys), 9)
    assert what([chat]) == [expected]
    assert chat.name == f"{tmp_path}/a.jsonl, line 1"


def test_as_many_rows_as_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"text": str(n)} for n in range(3000)])
    assert [c.response for c in read_chats(ChatData(path), 2500)] == [*map(str, range(2500))]
    # What comes after them is not looked at.
    path = write(tmp_path / "a.jsonl", [{"text": "t"}, {"text": 3}])
    assert len(read_chats(ChatData(path), 1)) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_folder_of_files_is_read_by_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(3)]
    write(folder / f"train{suffix}", rows)
    write(folder / f"test{suffix}", [{"question": "q", "answer": None}, *rows])
    data = ChatData(str(folder))
    assert what(read_chats(data, 2)) == [(["q0"], "a0"), (["q1"], "a1")]
    with pytest.raises(ValueError, match="folder, row 1: 'answer' must be a text that is not"):
        read_chats(ChatData(str(folder), split="test"), 9)
    with pytest.raises(ValueError, match="folder: cannot be loaded as a data set .*split dev"):
        read_chats(ChatData(str(folder), split="dev"), 9)


@pytest.mark.parametrize("path", ["no/such/folder", "nosuch/data-set"])
def test_neither_a_folder_nor_a_data_set(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ValueError, match=f"{path}: cannot be loaded as a data set") as caught:
        read_chats(ChatData(path), 9)
    assert "\n" not in str(caught.value)


def test_the_extra_is_named_where_its_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=re.escape("pip install 't3d[datasets]'")):
        read_chats(ChatData("some/data"), 9)


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no object": ([1], "not an object with keys"),
    "no key": ({"q": "x"}, "has the keys q; name those to read as data.messages"),
    "empty": ({}, "has the keys none; name those"),
    "half a pair": ({"question": "q"}, "has the keys question; name"),
    "number": ({"text": 3}, "'text' must be a text that is not blank, got 3"),
    "blank": ({"prompt": "q", "response": " "}, "'response' must be a text that is not blank"),
    "null": ({"question": None, "answer": "a"}, "'question' must be a text that is not blank"),
    "no turns": ({"messages": []}, "'messages' must be a list of turns, got []"),
    "text as turns": ({"messages": "hi"}, "'messages' must be a list of turns, got 'hi'"),
    "no role": (
        {"messages": [{"content": "x"}]},
        "messages[0] must have 'role' and 'content', is {'content': 'x'}",
    ),
    "no turn": ({"messages": [*turns("q"), "a"]}, "messages[1] must have 'role' and 'content'"),
    "role": ({"messages": [{"role": 1, "content": "x"}]}, "'messages[0].role' must be a text"),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}, *turns("a", first="a")]},
        "'messages[0].content' must be a text",
    ),
    "blank answer": ({"messages": turns("q", "")}, "'messages[1].content' must be a text that is"),
    "last is user": (
        {"messages": turns("q", "a", "q")},
        "'messages' must end with the assistant's turn, ends with 'user'",
    ),
    "only an answer": (
        {"messages": turns("a", first="a")},
        "'messages' must have a turn before the assistant's",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_cannot_be_taken_is_named(tmp_path: Path, name: str) -> None:
    row, part = BAD_ROWS[name]
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(ValueError, match=re.escape(f"a.jsonl, line 1: {part}")):
        read_chats(ChatData(path), 9)


def test_every_row_has_the_keys_of_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "t"}, {"prompt": "q", "response": "a"}])
    with pytest.raises(ValueError, match="a.jsonl, line 2: lacks the key 'text'"):
        read_chats(ChatData(path), 9)
    with pytest.raises(ValueError, match="a.jsonl, line 1: lacks the key 'in'"):
        read_chats(ChatData(path, prompt="in", response="out"), 9)


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("a.jsonl", b"", "a.jsonl: holds no rows"),
        ("a.jsonl", b'{"text": "t"}\n{', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"\xff", "a.jsonl: not UTF-8 text"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read as Parquet"),
        ("b.jsonl", b"", "a.jsonl: cannot be read"),
        ("b.jsonl", b"", "a.parquet: cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, file: str, content: bytes, part: str
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=part):
        read_chats(ChatData(str(tmp_path / part.split(":")[0].split(",")[0])), 9)


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"prompt": "q"}, "prompt and response are a pair; name both keys"),
        ({"response": "a"}, "prompt and response are a pair; name both keys"),
        ({"messages": "m", "text": "t"}, "name one"),
        ({"prompt": "q", "response": "a", "text": "t"}, "name one"),
        ({"max_length": 0}, "data: max_length must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit(keys: Any, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ChatData("a.jsonl", **keys)
