"""Drafts: the steps to come, guessed from one prediction for the next pass to verify.

A step is a pure function of the state, so the pass that sees a drafted state also finds what
follows it: decoding goes on through the drafted states for as long as its own steps lead to them
(FreeDave, arXiv:2510.00294; Spiffy, arXiv:2509.18085). Drafts change passes, never outputs.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from torch import Tensor

from t3d.decoding.config import DecodingConfig
from t3d.decoding.denoising import choose, columns, committed
from t3d.decoding.sequence import Draft, Sequence, State
from t3d.decoding.transfer import send


def draft(
    config: DecodingConfig,
    sequences: list[Sequence],
    logits: Tensor,
    banned: Tensor,
    stop_token_ids: frozenset[int],
) -> list[Draft]:
    """Draft the rest of each sequence's window.

    The strategy is applied again and again to the same logits, each time with the random numbers
    of the step that is drafted.

    Args:
        config: decoding setting of all these sequences.
        logits: logits of their masked positions, in order, [M, V].
        banned: ids that are never drawn, int64 [K].
        stop_token_ids: tokens that end a response; what would follow them is not drafted.
    """
    rows, paths = {}, []
    for number, sequence in enumerate(sequences):
        paths.append([sequence.state])
        rows |= {(number, position): len(rows) + i for i, position in enumerate(sequence.masked)}
    for _ in range(config.most_states):
        going = [number for number, path in enumerate(paths) if path[-1].masked]
        states = [paths[number][-1] for number in going]
        if not states:
            break
        own = [rows[n, p] for n, state in zip(going, states, strict=True) for p in state.masked]
        picked, *sent = send(logits.device, [own, *columns(config, states)])
        choice = choose(config, logits[picked], banned, sent)
        for number, found in zip(going, choice.of(states), strict=True):
            chosen = committed(paths[number][-1].masked, found)
            commits = [(position, token) for position, token, _ in chosen]
            paths[number].append(paths[number][-1].after(commits))
    return [
        _whole(config, sequence, path, stop_token_ids)
        for sequence, path in zip(sequences, paths, strict=True)
    ]


def _whole(
    config: DecodingConfig, sequence: Sequence, path: list[State], stop_token_ids: frozenset[int]
) -> Draft:
    """The draft whose steps lead along a path of states."""
    first, last = path[0], path[-1]
    # States after a whole window's steps belong to the next window, which has no draft yet.
    states = [state for state in path[1 : config.most_states] if state.masked]
    if not config.order_is_known:
        sizes = tuple(len(first.masked) - len(state.masked) for state in states)
        order = [
            position
            for before, after in pairwise(path)
            for position in before.masked
            if position not in after.masked
        ]
        for ranks in _rank_sets(len(order), sizes, config.most_states - 1)[len(sizes) :]:
            chosen = [(order[rank], last.ids[order[rank] - last.start]) for rank in ranks]
            states.append(first.after(chosen, sizes.index(len(ranks)) + 1))
    response = last.ids[max(sequence.prompt_length - sequence.start, 0) :]
    goes_on = stop_token_ids.isdisjoint(response) and sequence.window_end == sequence.end
    return Draft(tuple(states), last.ids if goes_on and not last.masked else None)


@cache
def _rank_sets(num: int, sizes: tuple[int, ...], limit: int) -> list[tuple[int, ...]]:
    """Sets of the ranks 0..num-1, at most `limit` of them, as if committed in another order.

    First come the sets of the drafted order, which hold the lowest ranks; then those that are one
    place away from it, then two.
    """
    found = level = [tuple(range(size)) for size in sizes]
    while level and len(found) < limit:
        moved = {
            (*ranks[:i], rank + 1, *ranks[i + 1 :])
            for ranks in level
            for i, rank in enumerate(ranks)
            if rank + 1 < num and rank + 1 not in ranks
        }
        level = sorted(moved)
        found = found + level
    return found[:limit]
