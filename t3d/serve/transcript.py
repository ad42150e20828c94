"""A response as it becomes text: in reading order, in whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from t3d.core.trajectory import FinishReason
from t3d.decoding.request import Event, Passes

_PART = "\ufffd"
"""What a tokenizer gives for bytes that are no whole character."""


@dataclass(frozen=True)
class Token:
    """A committed token."""

    step: int
    id: int
    log_prob: float
    alternatives: dict[int, float]


class Transcript:
    """What is known of one response. What it says does not depend on how commits come in events.

    Args:
        text: turns token ids into text.
        stop_token_ids: tokens that end a response.
        stops: texts that end a response before themselves; the one that is complete first counts.
        limit: largest number of tokens.
    """

    def __init__(
        self,
        text: Callable[[Sequence[int]], str],
        stop_token_ids: Collection[int],
        stops: Sequence[str],
        limit: int,
    ) -> None:
        self._text = text
        self._stop_token_ids = stop_token_ids
        self._stops = stops
        self._limit = limit
        self._committed: dict[int, Token] = {}
        self.tokens: list[Token] = []
        """Tokens that are final, in reading order, with the one that ended the response."""
        self.num_text_tokens = 0
        """Number of these that are text, which a stop token is not."""
        self.finish_reason: FinishReason | None = None
        self.passes = Passes()
        self._start = self._read = 0
        self._held = ""

    def take(self, event: Event) -> str:
        """Note an event; returns the text that has become final, which may be empty."""
        self.passes = event.passes
        commits = zip(
            event.places, event.token_ids, event.log_probs, event.alternatives, strict=True
        )
        for place, id, log_prob, alternatives in commits:
            self._committed[place] = Token(event.step, id, log_prob, alternatives)
        new = ""
        while self.finish_reason is None and len(self.tokens) in self._committed:
            new += self._append(self._committed.pop(len(self.tokens)))
        assert event.completion is None or self.finish_reason is not None
        return new

    def _append(self, token: Token) -> str:
        self.tokens.append(token)
        if token.id in self._stop_token_ids:
            self.finish_reason = "stop"
        else:
            self.num_text_tokens += 1
            if len(self.tokens) == self._limit:
                self.finish_reason = "length"
        self._held += self._decode(is_last=self.finish_reason is not None)
        found = [s for s in self._stops if s in self._held]
        if found:
            self.finish_reason = "stop"
            # Of several that are complete with this token the first; of two that end together, the
            # one that begins first.
            _, start = min(((at := self._held.find(s)) + len(s), at) for s in found)
            return self._held[:start]
        kept = 0 if self.finish_reason is not None else self._num_kept()
        new = self._held[: len(self._held) - kept]
        self._held = self._held[len(new) :]
        return new

    def _decode(self, *, is_last: bool) -> str:
        """The text of the tokens that were not read yet, if they end with a whole character."""
        ids = [token.id for token in self.tokens[self._start : self.num_text_tokens]]
        before = self._text(ids[: self._read - self._start])
        now = self._text(ids)
        # Some tokenizers drop a text's first blank, so tokens are read behind those before them.
        if now.endswith(_PART) and not is_last:
            return ""
        self._start, self._read = self._read, self.num_text_tokens
        return now[len(before) :]

    def _num_kept(self) -> int:
        """Number of characters at the end with which a stop string may begin."""
        held = self._held
        return max(
            (
                num
                for stop in self._stops
                for num in range(1, min(len(stop), len(held) + 1))
                if held.endswith(stop[:num])
            ),
            default=0,
        )
