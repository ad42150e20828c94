"""States x_t of one block, and a model's predictions there.

Letters in shapes: N states, U nodes (blocks reached from a state), S block size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicCache

from t3d.core.blocks import CLEAN, BlockLayout, Coordinates
from t3d.core.rng import derive_key, fold, uniform
from t3d.core.trajectory import Trajectory
from t3d.decoding.cache import SlotCache
from t3d.decoding.replay import visited_states
from t3d.decoding.sampling import allowed_log_probs
from t3d.models.attention import attention_mask
from t3d.models.block_diffusion import BlockDiffusionLM


@dataclass(frozen=True)
class State:
    """A block that is partly decoded, after its finished prefix."""

    prefix: list[int]
    """Token ids of all earlier blocks."""
    block: list[int]
    """Token ids of the block as the model sees them: undecided positions show the mask token, or a
        random one."""
    masked: list[bool]
    """Whether each position of the block is still to be decoded."""
    key: int
    """Key of the state's random numbers."""


def select_states(
    trajectories: Sequence[Trajectory], *, num_states: int, noise_level: float, seed: int
) -> list[State]:
    """Visited states, at most one a trajectory, so that they are independent of each other.

    Trajectories and their blocks are drawn at random. Of a block it is the state whose masked
    share of the response positions is nearest to `noise_level` from above.
    """
    keys = torch.tensor([derive_key(seed, "analyze", t.prompt_id) for t in trajectories])
    draws = uniform(fold(keys, 0)).tolist()
    states = []
    for index in uniform(fold(keys, 1)).argsort(stable=True)[:num_states].tolist():
        trajectory = trajectories[index]
        ids = trajectory.prompt_ids + trajectory.response_ids
        steps = [0] * len(trajectory.prompt_ids) + trajectory.step_map
        visited = [
            (start, [state for _, state in group])
            for start, group in groupby(visited_states(trajectory), key=lambda state: state[0])
        ]
        start, blocks = visited[int(draws[index] * len(visited))]
        response = [p >= len(trajectory.prompt_ids) for p in range(start, start + len(blocks[0]))]
        chosen: State | None = None
        for step, block in enumerate(blocks):
            committed = steps[start : start + len(block)]
            masked = [r and not 0 <= c < step for r, c in zip(response, committed, strict=True)]
            # The masked share is 1 before the first step and falls with every step.
            if sum(masked) >= noise_level * sum(response) - 1e-6:
                chosen = State(ids[:start], block, masked, int(keys[index]))
        assert chosen is not None
        states.append(chosen)
    return states


class Denoiser:
    """A model's predictions for blocks that follow the prefixes of given states.

    Each prefix passes through the model once; after that a block costs S columns.
    """

    def __init__(
        self,
        model: BlockDiffusionLM,
        states: Sequence[State],
        *,
        banned_token_ids: Sequence[int],
        batch_size: int,
    ) -> None:
        """`banned_token_ids` are never generated; `batch_size` is the nodes of a forward pass."""
        device = model.device
        self.model = model
        self.block = torch.tensor([state.block for state in states], device=device)
        """Token ids of the states' blocks, int64 [N, S]."""
        self.masked = torch.tensor([state.masked for state in states], device=device)
        """Positions that are still to be decoded, bool [N, S]."""
        self.keys = torch.tensor([state.key for state in states], device=device)
        """Keys of the states' random numbers, int64 [N]."""
        self.batch_size = batch_size
        allowed = torch.ones(model.config.vocab_size, dtype=torch.bool, device=device)
        allowed[list(banned_token_ids)] = False
        self.allowed = allowed.nonzero()[:, 0]
        """Ids that can be generated, int64."""
        self._banned = (~allowed).nonzero()[:, 0]
        self.undecided = self._banned[0]
        """Id that stands for no token in a partly decoded block, a banned one."""
        self._layout = BlockLayout(self.block.shape[1])
        prefixes = [torch.tensor(state.prefix, dtype=torch.int64) for state in states]
        ids = pad_sequence(prefixes, batch_first=True).to(device)
        self._start = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        self._prefix = self._layout.clean(self._start, ids.shape[1])
        num, width = ids.shape
        self._cache = SlotCache(model.config, num, width, dtype=model.dtype, device=device)
        if width > 0:
            self._cache.place(torch.arange(num, device=device)[:, None], self._prefix.position)
            nothing = torch.zeros_like(ids, dtype=torch.bool)
            self._forward(ids, self._prefix, self._prefix, self._cache, select=nothing)

    @torch.inference_mode()
    def _forward(
        self,
        ids: Tensor,
        queries: Coordinates,
        keys: Coordinates,
        cache: Cache,
        select: Tensor | None = None,
    ) -> Tensor:
        implementation = self.model.config._attn_implementation
        assert implementation is not None
        mask = attention_mask(implementation, queries, keys, self.model.dtype)
        return self.model(ids, mask, queries.position, cache, select).logits

    def __call__(self, state: Tensor, block: Tensor) -> Tensor:
        """Log-probabilities [U, S, V] of blocks [U, S], each after the prefix of `state` [U]."""
        position = self._start[state, None] + torch.arange(block.shape[1], device=block.device)
        queries = self._layout.coordinates(position, torch.full_like(position, CLEAN))
        visible = Coordinates(
            torch.cat([self._prefix.position[state], queries.position], 1),
            torch.cat([self._prefix.block[state], queries.block], 1),
            torch.cat([self._prefix.stream[state], queries.stream], 1),
        )
        # A cache of the library holds keys and values apart, [U, kv_heads, num_slots, D] each.
        layers = (own[state].permute(2, 0, 3, 1, 4) for own in self._cache.states)
        cache = DynamicCache([tuple(own) for own in layers])
        return allowed_log_probs(self._forward(block, queries, visible, cache), self._banned)

    def roots(self) -> Tensor:
        """One-step log-probabilities at the states themselves, [N, S, V]."""
        nodes = torch.arange(len(self.block), device=self.block.device)
        parts = [self(n, self.block[n]) for n in nodes.split(self.batch_size)]
        return torch.cat(parts)

    def next_tokens(
        self, state: Tensor, block: Tensor, masked: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The next position that the full-step decoder commits at nodes, a batch at a time.

        It is the masked position whose most likely token has the highest probability, the first
        among equals. That depends on the node alone, not on drawn candidates.

        Yields:
            Numbers of the nodes [u], the position that commits next, int64 [u], and the
            float64 log-probabilities of its token [u, V].
        """
        for nodes in torch.arange(len(state), device=state.device).split(self.batch_size):
            log_probs = self(state[nodes], block[nodes])
            confidence = log_probs.amax(-1).masked_fill(~masked[nodes], -torch.inf)
            position = confidence.argmax(-1)
            row = torch.arange(len(nodes), device=state.device)
            yield nodes, position, log_probs[row, position].double()
