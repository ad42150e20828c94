"""The batched block decoder with a key-value cache.

A pass runs one block of every active sequence, each in its own phase: *denoising*, or
*commit*, which stores the finished block's keys and values. A block's provisional keys lie in
its own slots and are seen by that block alone, so both phases are the same computation.

Letters in shapes: B sequences of a pass, S block size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t3d.blocks import CLEAN, BlockLayout
from t3d.decoding.cache import SlotCache
from t3d.decoding.remasking import STRATEGIES, Scores, reverse_rate, static_quota
from t3d.decoding.request import Completion, DecodingConfig, Passes, Request
from t3d.decoding.sampling import initial_ids, position_keys, sample
from t3d.models.attention import attention_mask
from t3d.models.sdar import SDARForCausalLM
from t3d.rng import fold, uniform
from t3d.trajectory import FinishReason


@dataclass
class _Sequence:
    """One request being decoded; lists cover the prompt and all blocks to be filled."""

    index: int
    """The request's number."""
    request: Request
    initial_ids: list[int]
    """x_T of the response."""
    ids: list[int]
    step_map: list[int]
    log_probs: list[float]
    start: int
    """First position of the current block."""
    row: int = -1
    """Its row in the cache, once admitted."""
    step: int = 0
    num_prefills: int = 0
    num_denoising: int = 0
    num_commits: int = 0

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    def masked(self, block: slice) -> list[bool]:
        positions = range(*block.indices(len(self.ids)))
        return [p >= self.prompt_length and self.step_map[p] < 0 for p in positions]

    def window(self, block: slice, size: int) -> tuple[list[bool], int]:
        """The masked positions of the block's current window, and the step within it."""
        masked = self.masked(block)
        if not any(masked):
            return masked, 0
        # Windows divide blocks, so they lie on the block's own grid too.
        first = masked.index(True) // size * size
        masked[first + size :] = [False] * (len(masked) - first - size)
        # The window before ended with the step that committed its last token.
        before = self.step_map[block.start : block.start + first]
        return masked, self.step - 1 - max(before, default=-1)


class BlockDecoder:
    """Decodes requests with a block-diffusion model.

    Args:
        model: in evaluation mode.
        config: how to decode.
        mask_token_id: fills what is not decoded yet; never generated.
        stop_token_ids: end a response; may be empty.
        banned_token_ids: never generated either, such as a pad token that is no stop token.
        batch_size: sequences that share a forward pass at most.
    """

    def __init__(
        self,
        model: SDARForCausalLM,
        config: DecodingConfig,
        *,
        mask_token_id: int,
        stop_token_ids: Collection[int],
        banned_token_ids: Collection[int] = (),
        batch_size: int,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        vocabulary = range(model.config.vocab_size)
        banned = sorted({mask_token_id, *banned_token_ids})
        for token in banned:
            if token not in vocabulary:
                raise ValueError(
                    f"mask or banned token id {token} lies outside the model's vocabulary of "
                    f"{len(vocabulary)}; pass the ids of the model's own tokenizer"
                )
        self.model = model
        self.config = config
        self.layout = BlockLayout(config.block_size)
        self.mask_token_id = mask_token_id
        self.stop_token_ids = frozenset(stop_token_ids)
        self.batch_size = batch_size
        self._banned = torch.tensor(banned, device=model.device)

    @torch.inference_mode()
    def decode(
        self,
        requests: Sequence[Request],
        on_finish: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Completions in the order of the requests.

        Args:
            on_finish: called with the request's number and completion as each finishes.

        Raises:
            ValueError: for a model in training mode, an empty prompt, a token id outside the
                vocabulary, or a request that does not fit the model's positions.
        """
        if self.model.training:
            raise ValueError("the model is in training mode; call model.eval() before decoding")
        for index, request in enumerate(requests):
            self._check(index, request)
        waiting = deque(self._sequence(index, request) for index, request in enumerate(requests))
        if not waiting:
            return []
        rows: list[_Sequence | None] = [None] * min(self.batch_size, len(requests))
        cache = SlotCache(
            self.model.config,
            len(rows),
            max(len(sequence.ids) for sequence in waiting),
            dtype=self.model.dtype,
            device=self.model.device,
        )
        done: dict[int, Completion] = {}
        while len(done) < len(requests):
            admitted = []
            for row, occupant in enumerate(rows):
                if occupant is None and waiting:
                    rows[row] = sequence = waiting.popleft()
                    sequence.row = row
                    admitted.append(sequence)
            self._prefill(cache, [sequence for sequence in admitted if sequence.start > 0])
            for sequence in self._advance(cache, [s for s in rows if s is not None]):
                completion = self._completion(sequence)
                if completion is not None:
                    rows[sequence.row] = None
                    done[sequence.index] = completion
                    if on_finish is not None:
                        on_finish(sequence.index, completion)
        return [done[index] for index in range(len(requests))]

    def _check(self, index: int, request: Request) -> None:
        length, new = len(request.prompt_ids), request.num_new(self.config)
        _, end = self.layout.span(length, new)
        limit, vocabulary = self.model.config.max_position_embeddings, self.model.config.vocab_size
        if length == 0:
            raise ValueError(f"request {index}: the prompt is empty; give at least one token")
        if new < 1:
            raise ValueError(f"request {index}: max_new_tokens must be at least 1, got {new}")
        if end > limit:
            raise ValueError(
                f"request {index}: a prompt of {length} tokens and max_new_tokens={new} make "
                f"{end} in whole blocks of {self.config.block_size}, more than the model's "
                f"max_position_embeddings={limit}; shorten the prompt or lower max_new_tokens"
            )
        for token in request.prompt_ids:
            if not 0 <= token < vocabulary:
                raise ValueError(
                    f"request {index}: token id {token} of the prompt lies outside the model's "
                    f"vocabulary of {vocabulary}; encode it with the model's own tokenizer"
                )

    def _sequence(self, index: int, request: Request) -> _Sequence:
        start, end = self.layout.span(len(request.prompt_ids), request.num_new(self.config))
        initial = initial_ids(
            request.seed,
            range(len(request.prompt_ids), end),
            random_share=self.config.random_share,
            mask_token_id=self.mask_token_id,
            vocab_size=self.model.config.vocab_size,
        )
        ids = request.prompt_ids + initial
        return _Sequence(index, request, initial, ids, [-1] * end, [0.0] * end, start)

    def _forward(
        self, cache: SlotCache, rows: list[int], ids: Tensor, position: Tensor, select: Tensor
    ) -> Tensor:
        """One pass over ids [B, L] at positions [B, L]; logits [M, V] of the selected."""
        num_visible = int(position.max()) + 1
        cache.place(rows, position, num_visible)
        slots = torch.arange(num_visible, device=ids.device).expand(len(rows), -1)
        # What a slot of the own or an earlier block holds was written by this sequence: later
        # blocks, where leftovers of others lie, are out of sight.
        queries, keys = (
            self.layout.coordinates(p, torch.full_like(p, CLEAN)) for p in (position, slots)
        )
        implementation = self.model.config._attn_implementation
        assert implementation is not None
        mask = attention_mask(implementation, queries, keys, self.model.dtype)
        return self.model(ids, mask, position, past_key_values=cache, select=select).logits

    def _prefill(self, cache: SlotCache, sequences: list[_Sequence]) -> None:
        """Store the keys and values of the prompts' full blocks, right-padded."""
        if not sequences:
            return
        # A shorter prompt's padding lies in later slots of its own row, which are written
        # again before anything sees them.
        width = max(sequence.start for sequence in sequences)
        fill = [self.mask_token_id] * width
        ids = self._tensor([(s.ids[: s.start] + fill)[:width] for s in sequences])
        position = torch.arange(width, device=ids.device).expand_as(ids)
        select = torch.zeros_like(ids, dtype=torch.bool)
        self._forward(cache, [s.row for s in sequences], ids, position, select)
        for sequence in sequences:
            sequence.num_prefills += 1

    def _advance(self, cache: SlotCache, sequences: list[_Sequence]) -> list[_Sequence]:
        """One pass over the current block of every sequence; updates and returns them."""
        size = self.config.block_size
        blocks = [slice(s.start, s.start + size) for s in sequences]
        pairs = list(zip(sequences, blocks, strict=True))
        ids = self._tensor([s.ids[block] for s, block in pairs])  # [B, S]
        windows = [s.window(block, self.config.window_size) for s, block in pairs]
        masked = self._tensor([window for window, _ in windows])  # [B, S]
        window_step = self._tensor([window_step for _, window_step in windows])
        start = self._tensor([s.start for s in sequences])
        step = self._tensor([s.step for s in sequences])
        seed = self._tensor([s.request.seed for s in sequences])
        position = start[:, None] + torch.arange(size, device=ids.device)
        logits = self._forward(cache, [s.row for s in sequences], ids, position, masked)

        keys = position_keys(seed[:, None], position, step[:, None])
        candidates = sample(
            logits,
            uniform(keys)[masked],
            self._banned,
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            top_p=self.config.top_p,
        )
        log_probs = torch.zeros(ids.shape, dtype=candidates.log_probs.dtype, device=ids.device)
        log_probs[masked] = candidates.log_probs
        ids[masked] = candidates.ids
        scores = Scores(
            confidence=log_probs.exp(),
            masked=masked,
            quota=static_quota(
                window_step, masked, self.config.window_size, self.config.denoising_steps
            ),
            rate=reverse_rate(window_step, self.config.denoising_steps),
            uniforms=uniform(fold(keys, 1)),
            threshold=self.config.confidence_threshold,
        )
        commit = STRATEGIES[self.config.remasking](scores)
        results = (ids.tolist(), log_probs.tolist(), commit.tolist())
        for sequence, was_masked, *block in zip(
            sequences, masked.any(1).tolist(), *results, strict=True
        ):
            if was_masked:
                self._commit_tokens(sequence, *block)
            else:
                sequence.num_commits += 1
                sequence.start += size
                sequence.step = 0
        return sequences

    @staticmethod
    def _commit_tokens(
        sequence: _Sequence, ids: list[int], log_probs: list[float], commit: list[bool]
    ) -> None:
        for offset, chosen in enumerate(commit):
            if chosen:
                position = sequence.start + offset
                sequence.ids[position] = ids[offset]
                sequence.log_probs[position] = log_probs[offset]
                sequence.step_map[position] = sequence.step
        sequence.step += 1
        sequence.num_denoising += 1

    def _completion(self, sequence: _Sequence) -> Completion | None:
        """The completion if the sequence is finished."""
        prompt_length = sequence.prompt_length
        max_new_tokens = sequence.request.num_new(self.config)
        end = sequence.start + self.config.block_size
        masked = sequence.masked(slice(sequence.start, end))
        first_masked = sequence.start + (masked.index(True) if any(masked) else len(masked))
        reason: FinishReason = "length"
        num_response_tokens = max_new_tokens
        # A stop token in the prompt or beyond max_new_tokens ends nothing.
        for position in range(
            max(sequence.start, prompt_length), min(first_masked, prompt_length + max_new_tokens)
        ):
            if sequence.ids[position] in self.stop_token_ids:
                reason, num_response_tokens = "stop", position + 1 - prompt_length
                break
        else:
            if any(masked) or end < len(sequence.ids):
                return None
        response = slice(prompt_length, end)
        return Completion(
            response_ids=[
                token if step >= 0 else self.mask_token_id
                for token, step in zip(
                    sequence.ids[response], sequence.step_map[response], strict=True
                )
            ],
            step_map=sequence.step_map[response],
            log_probs=sequence.log_probs[response],
            num_response_tokens=num_response_tokens,
            finish_reason=reason,
            passes=Passes(sequence.num_prefills, sequence.num_denoising, sequence.num_commits),
            initial_ids=sequence.initial_ids[: end - prompt_length],
        )

    def _tensor(self, rows: Sequence[object]) -> Tensor:
        return torch.tensor(rows, device=self.model.device)
