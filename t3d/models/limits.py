"""Limits of time, memory and text for a checkpoint's template and tokenizer, which are programs."""

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
"""Largest number of characters that a chat template may print around one short question; published
ones print some thousands."""
MAX_GROWTH = 1000
"""Largest number of characters that a tokenizer's rules may make of one; published ones make
three."""
_ONE_AT_A_TIME = threading.Lock()
"""Lock around the memory limit, which belongs to the whole process: two threads that set and reset
it at the same time would leave one set."""
_TEXT_RULES = ("normalizer", "pre_tokenizer", "decoder")


@contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Context in which at most `more` further bytes may be allocated; no limit except on Linux."""
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
    """The output of a chat template that comes with a checkpoint and may be hostile.

    Raises:
        MemoryError: if it takes more memory than any prompt needs.
        TimeoutError: if it does not end; its thread is then told to stop.
        ValueError: if it prints more than any prompt has.
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
    """Check that the rules of a tokenizer.json, applied in turn, make no long text of a short one.

    Raises:
        ValueError: if they do, as no time or memory would suffice.
    """
    if not path.is_file():
        return
    try:
        document = parse_json(path.read_bytes())
        parts = {name: list(_rules(document[name])) for name in _TEXT_RULES if name in document}
    except (OSError, ValueError, TypeError, RecursionError):
        # A broken file is reported when the tokenizer is loaded.
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
    """All objects in a JSON document."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _rules(part)
