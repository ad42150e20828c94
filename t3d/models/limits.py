"""Bounds on what a checkpoint's template and tokenizer may take, which are programs of its own."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from t3d.core.files import parse_json

TEMPLATE_SECONDS = 10.0
TEMPLATE_BYTES = 2**29
MAX_TEMPLATE_TEXT = 10**6
"""Characters around one short question; published templates print some thousands."""
MAX_GROWTH = 1000
"""Characters that rules of a tokenizer may make of one; those of published ones make three."""
_ONE_AT_A_TIME = threading.Lock()
"""The limit is the whole process's; two that come and go would leave one behind."""
_TEXT_RULES = ("normalizer", "pre_tokenizer", "decoder")


@contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """So many bytes may be taken beside those that are; on Linux, elsewhere there is no bound."""
    if sys.platform != "linux":
        yield
        return
    with _ONE_AT_A_TIME:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * resource.getpagesize() + more
        if before[0] != resource.RLIM_INFINITY:
            limit = min(limit, before[0])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)


def render(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], **options: Any) -> str:
    """What a chat template of unknown making prints.

    Raises:
        MemoryError: where it takes more than any prompt needs.
        TimeoutError: where it does not end; a thread's loop can be told to.
        ValueError: for more than any prompt.
    """
    printed: Future[Any] = Future()

    def run() -> None:
        try:
            with bounded_memory(TEMPLATE_BYTES):
                text = tokenizer.apply_chat_template(chat, tokenize=False, **options)
            printed.set_result(text)
        except BaseException as error:
            printed.set_exception(error)

    (thread := threading.Thread(target=run, daemon=True)).start()
    try:
        text = str(printed.result(TEMPLATE_SECONDS))
    except TimeoutError:
        ident, stop = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, stop)
        raise
    if len(text) > MAX_TEMPLATE_TEXT:
        raise ValueError(f"prints {len(text)} characters")
    return text


def check_growth(path: Path) -> None:
    """That the rules of a tokenizer.json do not make long texts of short ones, one after another.

    Raises:
        ValueError: where they do, as no time or memory would suffice.
    """
    if not path.is_file():
        return
    try:
        document = parse_json(path.read_bytes())
        parts = {name: list(_rules(document[name])) for name in _TEXT_RULES if name in document}
    except (OSError, ValueError, TypeError, RecursionError):
        # Loading says what is wrong.
        return
    for part, rules in parts.items():
        growth = 1
        for rule in rules:
            if rule.get("type") == "Replace":
                growth *= max(1, len(str(rule.get("content"))))
        if growth > MAX_GROWTH:
            raise ValueError(
                f"{path}: the {part} makes more than {MAX_GROWTH} characters of one; "
                "copy the published one again"
            )


def _rules(node: Any) -> Iterator[dict[str, Any]]:
    """All objects of a tree."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _rules(part)
