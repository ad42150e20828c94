"""Trajectory stores, evaluations and runs as problems of the page of trajectories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from t3d.core.store import MANIFEST, TrajectoryStore
from t3d.decoding.config import DecodingConfig, labels, one_line
from t3d.evaluation.evaluate import Evaluation, evaluation_folders
from t3d.models.limits import render
from t3d.models.tokenizers import load_tokenizer, token_text
from t3d.report.sheets import order_methods
from t3d.report.trajectories import Problem, TrajectoryView, view_of

Key = tuple[str, int]
"""A question, and how many times it came before."""
Found = dict[Key, tuple[str, str | None, list[TrajectoryView]]]


def read_problems(
    paths: Sequence[Path], *, model: str | None = None, num_problems: int | None = None
) -> list[Problem]:
    """The questions that all paths have, with the responses of all of them.

    Args:
        paths: trajectory stores, folders of `t3d eval` or of one setting of it, and runs.
        model: the checkpoint whose tokenizer made the tokens; by default the one that each path
            names.
        num_problems: how many problems at most, in the order of the first path.

    Raises:
        ValueError: for a path that is none of these or damaged, a checkpoint that is not there, and
            paths without a question in common.
    """
    first, *others = [_read(path, model) for path in paths]
    keys = [key for key in first if all(key in other for other in others)]
    if not keys:
        names = " and ".join(map(str, paths))
        told = "no question in common; view those that decoded the same ones"
        raise ValueError(f"{names}: {told if others else 'holds no response yet; complete it'}")
    titles = [
        {view.title for _, _, views in found.values() for view in views}
        for found in (first, *others)
    ]
    clash = len(set().union(*titles)) < sum(map(len, titles))
    prefixes = [f"{path}: " if clash else "" for path in paths]
    return [
        (
            *first[key][:2],
            [
                replace(view, title=prefix + view.title)
                for prefix, found in zip(prefixes, (first, *others), strict=True)
                for view in found[key][2]
            ],
        )
        for key in keys[:num_problems]
    ]


def _read(path: Path, model: str | None) -> Found:
    if (path / MANIFEST).exists():
        return _from_store(path, model)
    folders = evaluation_folders(path)
    if not folders:
        raise ValueError(
            f"{path}: neither a trajectory store nor a finished evaluation nor a run; make "
            "one with `t3d rollout`, `t3d eval` or `t3d run`"
        )
    return _from_evaluations([Evaluation.load(folder) for folder in folders], path, model)


def _collect(rows: Iterable[tuple[str, str | None, TrajectoryView]], into: Found) -> None:
    seen: Counter[str] = Counter()
    for question, answer, view in rows:
        key = question, seen[question]
        seen[question] += 1
        into.setdefault(key, (question, answer, []))[2].append(view)


def _from_store(path: Path, model: str | None) -> Found:
    store = TrajectoryStore.open(path)
    made = store.manifest
    text, question = _tokenizer(model or made.model, path)
    title, known = made.model, "remasking" in made.decoding
    if known:
        title += f", {one_line(DecodingConfig(**made.decoding).label)}"
    found: Found = {}
    rows = (
        (
            question(t.prompt_ids),
            t.answer,
            TrajectoryView(
                title=title,
                tokens=[text(token) for token in t.response_ids[: t.num_response_tokens]],
                step_map=t.step_map[: t.num_response_tokens],
                # Rollouts that were imported lack the probabilities.
                log_probs=t.log_probs[: t.num_response_tokens] if known else None,
                block_offset=len(t.prompt_ids) % t.block_size,
                block_size=t.block_size,
                correct=None,
                passes=None,
            ),
        )
        for t in store.read()
    )
    _collect(rows, found)
    return found


def _from_evaluations(evaluations: Sequence[Evaluation], path: Path, model: str | None) -> Found:
    """Sides in the order of tables: methods, then tasks, seeds and settings from slow to fast."""
    rows = [evaluation.row for evaluation in evaluations]
    methods = order_methods(row.method for row in rows)
    tasks, seeds = {row.task for row in rows}, {row.seed for row in rows}
    names = labels({row.decoding: None for row in rows})
    found: Found = {}
    for evaluation in sorted(
        evaluations,
        key=lambda e: (methods.index(e.row.method), e.row.task, e.row.seed, e.row.decoding.rank),
    ):
        row = evaluation.row
        text, question = _tokenizer(model or row.model, path)
        parts = [row.task] * (len(tasks) > 1) + [row.method]
        parts += [f"seed {row.seed}"] * (len(seeds) > 1) + [one_line(names[row.decoding])]
        views = (
            (
                question(sample.prompt_ids),
                sample.answer,
                view_of(
                    sample.completion,
                    text,
                    title=", ".join(parts),
                    prompt_length=len(sample.prompt_ids),
                    block_size=row.decoding.window_size,
                    grade=sample.grade,
                ),
            )
            for sample in evaluation.samples
        )
        _collect(views, found)
    return found


@cache
def _tokenizer(
    name: str, path: Path
) -> tuple[Callable[[int], str], Callable[[Sequence[int]], str]]:
    """The text of a token, and the question of a prompt, without the chat template around it."""
    try:
        tokenizer = load_tokenizer(name)
    except ValueError as error:
        raise ValueError(f"{error}; name the checkpoint of {path} with --model") from None
    try:
        chat = [{"role": "user", "content": "QUESTION"}]
        head, _, tail = render(tokenizer, chat, add_generation_prompt=True).partition("QUESTION")
    # A template is a program of the checkpoint, which may raise anything.
    except Exception:
        head = tail = ""

    def question(ids: Sequence[int]) -> str:
        before, found, after = (
            token_text(tokenizer, ids).removeprefix(head).rpartition(tail or "\0")
        )
        return f"{before}\n{after}".strip() if found else after

    return cache(lambda token: token_text(tokenizer, [token])), question
