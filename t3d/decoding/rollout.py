"""Rollout: the teacher decodes every prompt, and its trajectories go into a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from t3d.core.blocks import BlockLayout
from t3d.core.progress import bar
from t3d.core.provenance import package_versions
from t3d.core.rng import derive_key
from t3d.core.store import Manifest, TrajectoryStore, hash_prompts
from t3d.core.trajectory import Trajectory
from t3d.core.workers import launched
from t3d.decoding.build import make_decoder
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.decoding.request import Completion, Request
from t3d.models.loading import LanguageModel
from t3d.tasks.base import Example


def rollout(
    lm: LanguageModel,
    examples: Sequence[Example],
    output: Path,
    config: RolloutConfig,
    *,
    part: tuple[int, int] | None = None,
    progress: bool = True,
) -> TrajectoryStore:
    """Decode every prompt that the store at `output` lacks.

    Under `torchrun` each rank takes every world_size-th run of `shard_size` prompts, writes its
    own shards, and waits until the store is complete. Ranks may be killed at any time; any number
    of them goes on.

    >>> import tempfile
    >>> from pathlib import Path
    >>> lm = t3d.from_pretrained("mini_teacher")
    >>> examples = t3d.get_task("mini_gsm").examples("train", 2)
    >>> config = t3d.RolloutConfig(t3d.DecodingConfig(max_new_tokens=96))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = t3d.rollout(lm, examples, Path(folder), config, progress=False)
    ...     [trajectory.prompt_id for trajectory in store.read()]
    ['mini_gsm/train/0/0', 'mini_gsm/train/0/1']

    Args:
        part: number of this process and how many share the prompts, where no launcher sets them;
            the process decodes its share, and does not wait for the others.

    Raises:
        ValueError: before anything is decoded, for prompts that cannot be decoded and for
            a store that something else made or is written to by another process as this rank;
            afterwards, naming prompts that were lost, or where other ranks are waited for in vain.
    """
    rank, world_size = part or launched()
    prompts = encode_prompts(lm, examples, config.decoding)
    share = config.memory_share
    decoder = make_decoder(lm, config.decoding, config.batch_size, memory_share=share)
    manifest = Manifest(
        prompt_set_hash=hash_prompts(
            [(e.id, ids, e.answer) for e, ids in zip(examples, prompts, strict=True)]
        ),
        num_prompts=len(examples),
        # Drafts change no trajectory, so a store may go on with and without them.
        decoding={
            name: value
            for name, value in asdict(config.decoding).items()
            if name not in ("draft_states", "draft_model")
        },
        model=lm.name,
        weights_hash=lm.weights_hash,
        seed=config.seed,
        packages=package_versions(),
        dtype=lm.dtype,
    )
    store = TrajectoryStore.open_or_create(output, manifest, rank=rank, world_size=world_size)
    # Which rank decodes a prompt, and in which batch, must not depend on what the store holds:
    # other ranks fill it meanwhile, and a resumed run must give the same bytes.
    width = config.shard_size
    starts = range(rank * width, len(prompts), world_size * width)
    chunks = [range(start, min(start + width, len(prompts))) for start in starts]
    completed = store.completed()
    todo = [[i for i in chunk if i not in completed] for chunk in chunks]
    num, num_missing = sum(map(len, chunks)), sum(map(len, todo))
    with (
        bar("rollout", num, "prompt", done=num - num_missing, show=progress) as count,
        # Nothing is written in a complete store, so no lock is needed.
        store.shards.writing() if num_missing else nullcontext(),
    ):

        def tick(_: int, completion: Completion) -> None:
            count.advance()
            store.shards.touch()

        for missing in filter(None, todo):
            requests = [
                Request(prompts[i], derive_key(config.seed, examples[i].id)) for i in missing
            ]
            completions = decoder.decode(requests, on_finish=tick)
            store.append(
                [
                    (i, record(examples[i], prompts[i], completion, config.decoding))
                    for i, completion in zip(missing, completions, strict=True)
                ]
            )
    completed = store.completed()
    lost = [examples[i].id for chunk in chunks for i in chunk if i not in completed]
    if lost:
        raise ValueError(f"{output}: {len(lost)} rollouts were lost: {', '.join(lost[:10])}")
    if world_size > 1 and part is None:
        store.shards.wait(
            "prompt_index", len(prompts), "rollout", patience=config.patience, progress=progress
        )
    return store


def encode_prompts(
    lm: LanguageModel, examples: Sequence[Example], decoding: DecodingConfig
) -> list[list[int]]:
    """Token ids of all prompts.

    Raises:
        ValueError: for an empty set, an id used twice, or a prompt that leaves no room for
            max_new_tokens.
    """
    if not examples:
        raise ValueError("the prompt set is empty; there is nothing to roll out")
    name, count = Counter(example.id for example in examples).most_common(1)[0]
    if count > 1:
        raise ValueError(f"the prompt id {name!r} is used {count} times; ids must be unique")
    room = BlockLayout(decoding.block_size).floor(lm.model.config.max_position_embeddings)
    limit = room - decoding.max_new_tokens
    if limit < 1:
        raise ValueError(
            f"max_new_tokens={decoding.max_new_tokens} leaves no room for a prompt in the {room} "
            f"positions of {lm.name}; give a smaller max_new_tokens"
        )
    prompts = lm.encode_examples(examples)
    for example, ids in zip(examples, prompts, strict=True):
        if len(ids) > limit:
            raise ValueError(
                f"prompt {example.id!r} has {len(ids)} tokens, but {lm.name} takes at most "
                f"{limit} with max_new_tokens={decoding.max_new_tokens}; shorten or drop it"
            )
    return prompts


def record(
    example: Example, prompt_ids: list[int], completion: Completion, decoding: DecodingConfig
) -> Trajectory:
    """The trajectory of a decoded prompt, as the store keeps it."""
    response = {name: value for name, value in vars(completion).items() if name != "passes"}
    return Trajectory(
        prompt_id=example.id,
        prompt_ids=prompt_ids,
        block_size=decoding.block_size,
        answer=example.answer,
        **response,
    )
