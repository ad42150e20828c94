"""A pass whose results the host has not read, and what it leaves on the device for the next one.

Letters in shapes: N tokens of the pass, M masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from t3d.decoding.config import DecodingConfig
from t3d.decoding.denoising import Chosen
from t3d.decoding.scheduler import Work

KNOWN = -1
"""The number of a token that the pass before cannot have changed."""


class Outcome(NamedTuple):
    """The tokens of a pass after its step."""

    ids: Tensor
    """Their ids, int64 [N]."""
    committed: Tensor
    """Whether the step committed them, uint8 [N + 1]; the last one is 0, for `KNOWN`, which is
    index -1."""

    @classmethod
    def of(cls, ids: Tensor, select: Tensor, candidates: Tensor, commits: Tensor) -> Outcome:
        """The outcome when some of the masked tokens commit.

        Args:
            ids: ids that the pass saw, int64 [N].
            select: numbers of the masked tokens, int64 [M].
            candidates: what they become if they commit, int64 [M].
            commits: which of them do, bool [M].
        """
        after = torch.where(commits, candidates, ids[select])
        committed = ids.new_zeros(len(ids) + 1, dtype=torch.uint8)
        committed.index_copy_(0, select, commits.byte())
        return cls(ids.index_copy(0, select, after), committed)

    def fill(self, ids: Tensor, source: Tensor) -> Tensor:
        """Ids of the next pass, int64 [N].

        Args:
            ids: those that the host knows.
            source: where each id is: in the pass before, or after it in `ids`.
        """
        return torch.cat([self.ids, ids])[source]

    def still_masked(self, doubtful: Tensor, num: int) -> Tensor:
        """Which of the positions that the host lists as masked still are, int64 [num], in order.

        Args:
            doubtful: numbers of their tokens in the pass before, or `KNOWN`.
            num: how many they are.
        """
        # A stable sort puts these first. For `nonzero` the host would wait, to learn their number.
        return self.committed[doubtful].argsort(stable=True)[:num]


@dataclass(frozen=True)
class Launched:
    """A pass that the host has not read."""

    groups: list[tuple[DecodingConfig, list[Work], Tensor, Chosen]]
    """Works of one setting each, with the logits of their states and what these commit."""
    outcome: Outcome | None
    """What the next pass needs if it is launched before this one is read."""
