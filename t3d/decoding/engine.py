"""The batched block decoder: continuous batching over a key-value cache, with fused commits.

A denoising pass runs all tokens of a sequence that the cache lacks, up to the end of its current
block: the prompt in the first pass, and a finished block in the first pass of the next one. Blocks
attend to earlier ones, so the step sees their final tokens, and a block takes no pass beyond its
denoising steps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from collections.abc import Sequence as Ordered
from itertools import chain, islice

import torch
from torch import Tensor

from t3d.core.ranges import check_number
from t3d.decoding.ahead import Launched, Outcome
from t3d.decoding.config import DecodingConfig
from t3d.decoding.denoising import Candidate, Chosen, choose, columns, committed
from t3d.decoding.drafting import draft
from t3d.decoding.request import Completion, Event, Request
from t3d.decoding.runner import Runner
from t3d.decoding.sampling import initial_ids, likeliest
from t3d.decoding.scheduler import Scheduler, Work
from t3d.decoding.sequence import Draft, Sequence
from t3d.decoding.transfer import send
from t3d.models.block_diffusion import BlockDiffusionLM

PREFILL_CHUNK = 8192


class BlockDecoder:
    """Decodes requests with a block-diffusion model: all at once by `decode`, or as they come
    by `submit`, `step` and `cancel`. A request's output depends on none of the others.

    Args:
        model: the model, in evaluation mode.
        config: decoding setting of requests without one of their own.
        mask_token_id: token at positions that are not decoded yet; never generated.
        stop_token_ids: tokens that end a response; may be empty.
        banned_token_ids: further tokens that are never generated, such as a pad token that is no
            stop token.
        batch_size: largest number of sequences that run at the same time.
        fused: whether a finished block is stored by the next block's first pass, rather than by a
            pass for that alone. The outputs are the same; false is for comparing passes.
        prefill_chunk: largest number of prompt tokens that run before other sequences take their
            next step. With a smaller one these wait less, and long prompts take more passes.
        cache_tokens: largest size of the cache, in which every row has as many slots as the longest
            running sequence needs; sequences wait for room. None: as much as `batch_size` needs.
        draft_model: the model that drafts for all requests, `DecodingConfig.draft_model`; by
            default the model itself.
        ahead: whether a pass is launched before the results of the last one are read, so that the
            device need not wait for the host; by default on CUDA. It needs `fused`, and requests
            of one setting whose `counts_are_known`, without alternatives; with others passes wait.
            After a stop one pass runs in vain, which `Passes` does not count.
    """

    def __init__(
        self,
        model: BlockDiffusionLM,
        config: DecodingConfig,
        *,
        mask_token_id: int,
        stop_token_ids: Collection[int],
        banned_token_ids: Collection[int] = (),
        batch_size: int,
        fused: bool = True,
        prefill_chunk: int = PREFILL_CHUNK,
        cache_tokens: int | None = None,
        draft_model: BlockDiffusionLM | None = None,
        ahead: bool | None = None,
    ) -> None:
        bounds = {"batch_size": batch_size, "prefill_chunk": prefill_chunk}
        if cache_tokens is not None:
            bounds["cache_tokens"] = cache_tokens
        for name, value in bounds.items():
            check_number(name, value, "[1, inf)", whole=True)
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
        self.mask_token_id = mask_token_id
        self.stop_token_ids = frozenset(stop_token_ids)
        self._banned_ids = banned
        self._banned = torch.tensor(banned, device=model.device)
        self._scheduler = Scheduler(
            batch_size=batch_size,
            fused=fused,
            prefill_chunk=prefill_chunk,
            cache_tokens=cache_tokens,
        )
        self._runner = Runner(model)
        self._draft_runner = None if draft_model is None else Runner(draft_model)
        self._runners = [runner for runner in (self._runner, self._draft_runner) if runner]
        self._sequences: dict[int, Sequence] = {}
        self._num_submitted = 0
        self._ahead = fused and (model.device.type == "cuda" if ahead is None else ahead)
        self._unread: Launched | None = None

    @property
    def num_unfinished(self) -> int:
        """Number of requests that wait or run."""
        return len(self._sequences)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a row of the cache."""
        return len(self._scheduler.waiting)

    def decode(
        self,
        requests: Ordered[Request],
        on_finish: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Completions in the order of the requests.

        Args:
            on_finish: called with the request's number and completion as each finishes.

        Raises:
            ValueError: for a model in training mode, an empty prompt, a token id outside the
                vocabulary, a request that does not fit the model's positions or the cache, or
                while submitted requests are unfinished.
        """
        if self._sequences:
            raise ValueError(
                f"{len(self._sequences)} submitted requests are unfinished; step until they are "
                "done, or cancel them, before decode"
            )
        done: dict[int, Completion] = {}
        # Numbered from 0 again, because errors name a request by its place in this list.
        self._num_submitted = 0
        try:
            # Passes make many small objects, for which Python's collector would search all that
            # torch holds again and again.
            gc.freeze()
            for request in requests:
                self.submit(request)
            while self._sequences:
                for event in self.step():
                    if event.completion is not None:
                        done[event.id] = event.completion
                        if on_finish is not None:
                            on_finish(event.id, event.completion)
        finally:
            gc.unfreeze()
            self.reset()
        return [done[index] for index in range(len(requests))]

    def submit(self, request: Request) -> int:
        """Queue a request; returns the id by which events and `cancel` know it.

        Raises:
            ValueError: as `decode` does.
        """
        if self.model.training:
            raise ValueError("the model is in training mode; call model.eval() before decoding")
        id = self._num_submitted
        config = request.settings(self.config)
        if config.draft_model != self.config.draft_model:
            raise ValueError(
                f"request {id}: draft_model must be the decoder's, "
                f"{self.config.draft_model!r}, got {config.draft_model!r}"
            )
        shape = self.model.config
        end = request.check(
            id, config, vocab_size=shape.vocab_size, limit=shape.max_position_embeddings
        )
        initial = initial_ids(
            request.seed,
            range(len(request.prompt_ids), end),
            random_share=config.random_share,
            mask_token_id=self.mask_token_id,
            banned_token_ids=self._banned_ids,
            vocab_size=shape.vocab_size,
        )
        ids = request.prompt_ids + initial
        sequence = Sequence(id, request, config, ids, self.mask_token_id)
        self._scheduler.submit(sequence)
        self._sequences[id] = sequence
        self._num_submitted += 1
        return id

    @torch.inference_mode()
    def cancel(self, id: int) -> bool:
        """Drop a request that waits or runs; returns false if it had ended or was never there."""
        sequence = self._sequences.pop(id, None)
        if sequence is None:
            return False
        if not self._sequences:
            self._unread = None
        if sequence.row < 0:
            self._scheduler.waiting.remove(sequence)
        else:
            self._release(sequence)
        return True

    def reset(self) -> None:
        """Drop every request and the cache, whatever state an exception left them in."""
        self._sequences.clear()
        self._unread = None
        self._scheduler.reset()
        for runner in self._runners:
            runner.reset()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit waiting requests while there is room, and run one pass of every sequence.

        A pass that only stores, and a denoising step that commits nothing, have no event. The
        events may be those of the pass before, which is read while the new one runs (`ahead`).
        After an exception, such as lack of memory or an interrupt, call `reset` before any other
        method.
        """
        scheduler = self._scheduler
        scheduler.admit()
        for runner in self._runners:
            runner.resize(scheduler.num_rows, scheduler.num_slots)
        before, self._unread = self._unread, None
        ahead = self._ahead and scheduler.can_go_ahead
        if before is not None and not ahead:
            for sequence in scheduler.running:
                sequence.unread_token = -1
            return self._read(before)
        works = scheduler.next_pass()
        launched = self._launch(works, before, ahead) if works else None
        if ahead:
            # The device has a pass to run while the host reads the last one.
            launched, self._unread = before, launched
        return self._read(launched) if launched else []

    def _release(self, sequence: Sequence) -> None:
        moved = self._scheduler.release(sequence)
        if moved is not None:
            for runner in self._runners:
                runner.move(moved, sequence.row)

    def _launch(self, works: list[Work], before: Launched | None, ahead: bool) -> Launched:
        """Launch a pass.

        Args:
            before: the pass before, if it is not read.
            ahead: whether the next pass will be launched before this one is read.
        """
        # Works of one setting, and the rows of the logits that belong to them.
        groups: dict[DecodingConfig, tuple[list[Work], list[int]]] = {}
        row = 0
        for work in works:
            if not work.states:
                work.sequence.store(work.stop, work.width)
                continue
            # At once, because the next pass may be planned before this one is read.
            work.sequence.num_cached = work.stored
            own, rows = groups.setdefault(work.sequence.config, ([], []))
            own.append(work)
            rows += range(row, row := row + sum(state.num_masked for state in work.states))
        numbers = [
            [
                *columns(config, [state for work in own for state in work.states]),
                rows if len(groups) > 1 else [],
            ]
            for config, (own, rows) in groups.items()
        ]
        run = self._runner.run(works, [*chain(*numbers)], before and before.outcome)
        found, outcome = [], None
        sent = iter(run.columns)
        for config, (own, _) in groups.items():
            places, schedule, rows = islice(sent, 3)
            if run.kept is not None:
                num = sum(len(state.masked) for work in own for state in work.states)
                places = places.view(-1, num)[:, run.kept]
            logits = run.logits if len(groups) == 1 else run.logits[rows]
            choice = choose(config, logits, self._banned, [places, schedule])
            if ahead:
                assert len(groups) == 1
                outcome = Outcome.of(run.ids, run.select, choice.ids, choice.commits)
                # Nothing is drafted or told from them, and the next pass needs their memory.
                logits = logits.new_empty(0)
            found.append((config, own, logits, choice))
        if ahead:
            for number, work in enumerate(works):
                work.sequence.unread_token = run.first_token.get(number, -1)
        return Launched(found, outcome)

    def _read(self, launched: Launched) -> list[Event]:
        """Wait for a pass, and take the steps that it leads to."""
        events = [event for group in launched.groups for event in self._denoise(*group)]
        for event in events:
            if event.completion is not None:
                self._release(self._sequences.pop(event.id))
        return events

    def _denoise(
        self, config: DecodingConfig, works: list[Work], logits: Tensor, choice: Chosen
    ) -> list[Event]:
        """Take the steps that the works' states lead to, and draft the next.

        The works are of sequences with one setting; the logits [M, V] are their states'.
        """
        steps = iter(choice.of([state for work in works for state in work.states]))
        events: list[Event] = []
        drafting: list[Sequence] = []
        rows: list[int] = []
        row = 0
        for work in works:
            sequence, first_row = work.sequence, row
            row += sum(state.num_masked for state in work.states)
            own_steps = [next(steps) for _ in work.states]
            # A response may have stopped in the pass before, which was read after this one began.
            if self._sequences.get(sequence.id) is not sequence:
                continue
            num = sequence.request.num_alternatives
            top = likeliest(logits[first_row:row], self._banned, num) if num else []
            number, own = self._walk(work, own_steps, top)
            events += own
            if config.most_states == 1 or (own and own[-1].completion is not None):
                continue
            sequence.draft = Draft()
            first_row += sum(len(state.masked) for state in work.states[:number])
            masked = work.states[number].masked
            left = [r for r, p in enumerate(masked, first_row) if p in sequence.masked]
            # Nothing is left of a block or window that is finished, and the next has no logits.
            if left or self._draft_runner is not None:
                drafting.append(sequence)
                rows += left
        if drafting:
            if self._draft_runner is not None:
                few = self._predict(self._draft_runner, drafting)
            else:
                few = logits[send(logits.device, [rows])[0]]
            drafts = draft(config, drafting, few, self._banned, self.stop_token_ids)
            for sequence, found in zip(drafting, drafts, strict=True):
                sequence.draft = found
        return events

    def _predict(self, runner: Runner, sequences: list[Sequence]) -> Tensor:
        """Logits of the sequences' masked positions, by the model that drafts."""
        works = [Work(s, s.num_draft_cached, s.end, (s.state,)) for s in sequences]
        for sequence in sequences:
            sequence.num_draft_cached = sequence.start
            sequence.num_drafts += 1
        return runner.run(works).logits

    def _walk(
        self, work: Work, steps: list[list[Candidate]], top: list[dict[int, float]]
    ) -> tuple[int, list[Event]]:
        """Commit step after step, for as long as they lead to a state that the pass saw.

        Args:
            steps: the candidates of each state's masked positions.
            top: alternatives at the masked positions of all states in turn; may be empty.

        Returns:
            The number of the last of these states, and the events.
        """
        sequence, drafted = work.sequence, work.sequence.draft.block
        block = slice(sequence.start, sequence.end)
        sequence.num_tokens += work.width
        sequence.num_denoising += 1
        sequence.num_drafted += len(steps) - 1
        events: list[Event] = []
        number = 0
        while True:
            step, chosen = sequence.step, committed(sequence.masked, steps[number])
            sequence.commit(chosen)
            completion = sequence.finished(self.stop_token_ids)
            if chosen or completion is not None:
                first = sum(len(state.masked) for state in work.states[:number])
                seen = dict(zip(work.states[number].masked, top[first:], strict=False))
                events.append(
                    Event(
                        id=sequence.id,
                        step=step,
                        places=[position - sequence.prompt_length for position, _, _ in chosen],
                        token_ids=[token for _, token, _ in chosen],
                        log_probs=[log_prob for _, _, log_prob in chosen],
                        alternatives=[seen.get(position, {}) for position, _, _ in chosen],
                        passes=sequence.passes,
                        completion=completion,
                    )
                )
            if completion is not None or len(steps) == 1:
                return number, events
            state = sequence.state
            # The next block's first state saw this block as it was drafted.
            unseen = state.start == block.stop and tuple(sequence.ids[block]) != drafted
            if unseen or state not in work.states:
                return number, events
            number = work.states.index(state)
            sequence.num_accepted += 1
