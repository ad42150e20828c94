from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.tasks.base import Example
from t3d.tasks.chat import ChatData, read_chats
from t3d.tasks.data import load_records
from t3d.tasks.own import OwnQuestions
from t3d.tasks.prompts import numbered_prompts
from t3d.tasks.upstream import convert_upstream

TEXT = st.text(min_size=1).filter(lambda text: text.strip())
EXAMPLES = st.lists(
    st.builds(Example, id=st.text(), question=TEXT, answer=st.none() | TEXT),
    min_size=1,
    unique_by=lambda example: example.id,
)


def load_prompts(path: Path) -> list[Example]:
    return list(numbered_prompts(path).values())


@given(EXAMPLES, st.booleans(), st.sampled_from(["question", "prompt"]))
def test_jsonl_round_trips(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example], ascii: bool, key: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "prompts.jsonl"
    rows = [{"id": e.id, key: e.question, "answer": e.answer} for e in examples]
    lines = [json.dumps(row, ensure_ascii=ascii) + "\n\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    assert load_prompts(path) == examples


def test_text_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffWhat is 1 + 1?\r\n\n  \nWhy?\n".encode())
    assert load_prompts(path) == [
        Example("mine/1", "What is 1 + 1?"),
        Example("mine/4", "Why?"),
    ]


def test_optional_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"prompt": "a", "id": 7, "answer": 2.5}\n'
        '{"question": "b", "prompt": "c", "answer": "x", "level": 3}\n'
        '{"question": "d", "id": null, "answer": null}\n',
        encoding="utf-8",
    )
    assert load_prompts(path) == [
        Example("7", "a", "2.5"),
        Example("mine/2", "b", "x"),
        Example("mine/3", "d"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"a", "prompts come as .jsonl or .txt, not .csv"),
        ("p", b"a", "prompts come as .jsonl or .txt, not neither"),
        ("p.txt", b"", "holds no prompts"),
        ("p.jsonl", b"\n \n", "holds no prompts"),
        ("p.txt", b"ab\xff", "not UTF-8 text (invalid start byte at byte 2)"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt" "b"}', "line 3: not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n["b"]', "line 2: not a JSON object but ['b']"),
        ("p.jsonl", b'{"text": "a", "id": 1}', "line 1: needs the key 'question' or 'prompt', has"),
        ("p.jsonl", b"{}", "line 1: needs the key 'question' or 'prompt', has none"),
        ("p.jsonl", b'{"prompt": " "}', "line 1: 'prompt' must be a text that is not blank"),
        ("p.jsonl", b'{"question": 3}', "line 1: 'question' must be a text"),
        ("p.jsonl", b'{"prompt": "a", "answer": []}', "line 1: 'answer' must be a text or a fin"),
        ("p.jsonl", b'{"prompt": "a", "id": true}', "line 1: 'id' must be a text or a fin"),
        ("p.jsonl", b'{"prompt": "a", "answer": NaN}', "line 1: 'answer' must be a text or a fin"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"prompt": "a", "answer": -1e999}',
            "line 2: 'answer' must be",
        ),
        ("p.jsonl", b'{"prompt": "a", "answer": " "}', "line 1: 'answer' is blank"),
        (
            "p.jsonl",
            b'{"prompt": "a", "id": 1}\n\n{"prompt": "b", "id": "1"}',
            "line 3: the id '1' is already that of line 1",
        ),
        (
            "p.jsonl",
            b'{"prompt": "a", "id": "p/2"}\n{"prompt": "b"}',
            "line 2: the id 'p/2' is already that of line 1",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("number", "text"), [("1e-05", "0.00001"), ("1e+16", "10000000000000000"), ("-2.50", "-2.5")]
)
def test_numbers_are_written_positionally(tmp_path: Path, number: str, text: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'\ufeff{{"prompt": "a", "answer": {number}}}')
    (example,) = load_prompts(path)
    assert (example.answer or "").removesuffix(".0") == text


@pytest.mark.parametrize("gold", ["\\frac{1}{", "{", "\\text{}"])
def test_a_gold_that_is_never_right_is_named_by_its_line(tmp_path: Path, gold: str) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": "a", "answer": "x+1"}, {"prompt": "b", "answer": gold, "grader": "math"}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    task = OwnQuestions(path)
    assert len(task.examples("train", 2)) == 2
    assert len(task.examples("test", 1)) == 1
    with pytest.raises(ValueError, match=r"mine.jsonl, line 3: the answer .* not equal to itself"):
        task.examples("test", 2)


def test_a_byte_order_mark_is_no_part_of_any_file(tmp_path: Path) -> None:
    path, mark = tmp_path / "a.jsonl", "\ufeff"
    path.write_text(mark + '{"question": "a", "answer": "1"}')
    assert load_prompts(path) == [Example("a/1", "a", "1")]
    (chat,) = read_chats(ChatData(str(path)), 1)
    assert (chat.prompt[0]["content"], chat.response) == ("a", "1")
    theirs = tmp_path / "theirs.json"
    theirs.write_text(mark + '[{"question": "a", "ground_truth_answer": "1"}]')
    records = tmp_path / "math500.jsonl"
    assert convert_upstream(theirs, records, "math500") == 1
    records.write_text(mark + records.read_text())
    (record,) = load_records("math500.jsonl", tmp_path, {})
    assert record.question == "a"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_prompts(tmp_path / "p.txt")
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(ValueError, match="cannot be read: no regular file"):
        load_prompts(tmp_path / "d.txt")
