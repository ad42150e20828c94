from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from t3d.tasks.protocols import CODE_HEADER, last_block, open_block, t3d_code, t3d_math

CODE = st.text(st.characters(exclude_characters="`"))


def test_the_authors_prompts_byte_for_byte() -> None:
    assert t3d_math("How many?") == (
        "<|im_start|>user\nHow many?\nPlease reason step by step, and put your final answer "
        "within \\boxed{}.<|im_end|>\n<|im_start|>assistant"
    )
    assert t3d_code("Q\n", "Here:\n```python\ndef f():\n\n") == (
        "<|im_start|>user\nThis is the problem:\nQ\n\nPlace your code within a single Python code "
        "block ```python ```. Do not include more than one code block. <|im_end|>\n"
        "<|im_start|>assistant\nHere:\n```python\ndef f():\n"
    )


@given(CODE, CODE, st.text())
def test_an_open_block_ends_at_its_fence(head: str, body: str, after: str) -> None:
    prefix = CODE_HEADER + head
    assert open_block(prefix, body) == head + body
    assert open_block(prefix, f"{body}```{after}") == head + body


@given(CODE, st.lists(CODE), st.text(st.characters(exclude_characters="`")))
def test_the_last_closed_block_counts(first: str, others: list[str], after: str) -> None:
    text = "".join(f"```python{block}```{after}" for block in [first, *others])
    assert last_block(text) == [first, *others][-1].strip()
    assert last_block(f"```python{first}") is None
    assert last_block(f"{text}\n```python{first}") == last_block(text)
