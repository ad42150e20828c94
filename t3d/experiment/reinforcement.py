"""Rewards of a round: what the student's responses earn, as training rows and as figures to watch.

What is rewarded is graded by the task itself, so that programs run in the sandbox and answers are
compared in the math workers, between rollout and training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from t3d.core.progress import note
from t3d.core.trajectory import NEVER, Trajectory, training_row
from t3d.models import LanguageModel
from t3d.objectives import GroupAdvantage
from t3d.tasks import Example, Grade, Task

_FEW_WORDS = 3
"""Most words beside the final answer of a response that is an answer alone."""
_SHORT, _BARE = 0.5, 0.25
"""A round's length below this share of the first round's, and a rise of the share of answers alone
by this much, are taken for reward hacking."""
Facts = dict[str, float]
"""Figures of a round by name."""


def rewarded_rows(
    task: Task,
    examples: Sequence[Example],
    lm: LanguageModel,
    trajectories: Sequence[Trajectory],
    advantage: GroupAdvantage,
) -> tuple[list[dict[str, Any]], Facts]:
    """The training rows of the groups that teach something, and the figures of all responses.

    The answer of a response is worth 1 if it is right, else 0; that of a program the share of its
    tests that it passes. A response that the token limit cut is wrong.

    Args:
        task: grades the responses.
        examples: the prompts, `group_size` times each in a row.
        lm: the student, whose tokenizer reads them.
        trajectories: the responses, in the same order.
        advantage: what is rewarded.

    Returns:
        The rows, and by name: `answer`, the mean reward of the answers; `right`, the share that
        earn all of it; `tokens_per_forward`; `length` in tokens; shares `truncated`, `no_answer`
        and `answer_only`, of responses with few words but the final answer; `signal`, the share
        of groups that are kept.
    """
    texts = [lm.decode(t.response_ids[: t.num_response_tokens]) for t in trajectories]
    graded: list[Any] = [None]
    if PartialState().is_main_process:
        graded = [grade_parts(task, examples, texts)]
    # Processes must agree on rewards, and a time limit may not fall alike in all of them.
    [grades] = broadcast_object_list(graded)
    whole = [t.finish_reason == "stop" for t in trajectories]
    right = [w and own[0].correct for w, own in zip(whole, grades, strict=True)]
    answer = [
        1.0 if r else w * _mean(g.correct for g in own[1:] or own)
        for r, w, own in zip(right, whole, grades, strict=True)
    ]
    finals = [own[0].final_answer for own in grades]
    speed = [t.num_response_tokens / num_passes(t) for t in trajectories]
    shape = -1, advantage.group_size
    scores, kept = advantage(
        *(torch.tensor(part, dtype=torch.float64).view(shape) for part in (answer, speed))
    )
    bare = [
        e.domain == "math" and f is not None and len(text.split()) - len(f.split()) <= _FEW_WORDS
        for e, f, text in zip(examples, finals, texts, strict=True)
    ]
    lengths = [t.num_response_tokens for t in trajectories]
    chosen = kept.repeat_interleave(advantage.group_size).tolist()
    count = max(1, sum(chosen))
    average = sum(n for n, is_chosen in zip(lengths, chosen, strict=True) if is_chosen) / count
    rows = [
        training_row(t, 0, advantage=score, right=float(r), average_length=average)
        for t, r, score, is_chosen in zip(
            trajectories, right, scores.flatten().tolist(), chosen, strict=True
        )
        if is_chosen
    ]
    facts = {
        "answer": _mean(answer),
        "right": _mean(right),
        "tokens_per_forward": _mean(speed),
        "length": _mean(lengths),
        "truncated": 1 - _mean(whole),
        "no_answer": _mean(f is None for f in finals),
        "answer_only": _mean(bare),
        "signal": _mean(kept.tolist()),
    }
    return rows, facts


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 6)


def num_passes(trajectory: Trajectory) -> int:
    """Number of denoising passes that committed a token of the response."""
    return len(set(trajectory.decode_order()) - {NEVER})


def grade_parts(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> list[list[Grade]]:
    """The verdict on each response; of a program with several tests those on each test follow."""
    parts = [
        [e, *(replace(e, program=p) for p in e.program.parts if p != e.program)]
        if e.program
        else [e]
        for e in examples
    ]
    asked = [(part, text) for own, text in zip(parts, texts, strict=True) for part in own]
    grades = iter(task.grade([part for part, _ in asked], [text for _, text in asked]))
    return [[next(grades) for _ in own] for own in parts]


def check_rewards(advantage: GroupAdvantage, examples: Sequence[Example]) -> None:
    """Check that responses to the examples can be right.

    Raises:
        ValueError: for prompts without a label, or with the teacher's answers as rewards for
            prompts that ask for programs, whose tests are labels.
    """
    if advantage.answers == "teacher":
        if any(example.domain == "code" for example in examples):
            raise ValueError(
                "advantage: answers: teacher: programs are graded by tests, which are labels; set "
                "it to labels"
            )
        return
    bare = next((e.id for e in examples if e.answer is None and e.program is None), None)
    if bare is not None:
        raise ValueError(
            f"advantage: answers: labels: {bare} has no answer, so no response to it is right; add "
            "it, or set answers to teacher"
        )


def taught(
    task: Task, examples: Sequence[Example], lm: LanguageModel, teacher: Sequence[Trajectory]
) -> list[Example]:
    """The examples with the teacher's answers and responses in the place of the labels.

    Args:
        teacher: the teacher's trajectory for each group of examples of one prompt.
    """
    texts = [lm.decode(t.response_ids[: t.num_response_tokens]) for t in teacher]
    size = len(examples) // len(teacher)
    finals = [grade.final_answer for grade in task.grade(examples[::size], texts)]
    return [
        replace(example, answer=finals[number // size], reference=texts[number // size])
        for number, example in enumerate(examples)
    ]


def is_hacked(facts: Facts, first: Facts) -> bool:
    """Whether responses have come to earn their reward by saying little, since the first round."""
    is_short = facts["length"] < _SHORT * first["length"]
    return is_short or facts["answer_only"] > first["answer_only"] + _BARE


def tell(number: int, record: dict[str, Any], first: Facts) -> None:
    """Print a line on a round, and a warning where its rewards look hacked.

    Args:
        number: number of the round, from 0.
        record: its provenance.
        first: the figures of the first round.
    """
    if not PartialState().is_main_process:
        return
    facts, learned = record["reward"], ""
    if logged := [row for row in record["log"] if "clip_share" in row]:
        metrics = logged[-1]
        learned = (
            f"; clipped {metrics['clip_share']:.1%}, KL {metrics['kl']:.4f}, entropy "
            f"{metrics['entropy']:.3f}"
        )
    note(
        f"round {number + 1}: {facts['right']:.1%} right, answers worth {facts['answer']:.3f}, "
        f"{facts['tokens_per_forward']:.2f} tokens a forward, {facts['length']:.1f} tokens long, "
        f"signal in {facts['signal']:.1%} of the groups{learned}; {record['tokens_decoded']:,} "
        f"tokens decoded in {facts['decoding_seconds']:.1f} s, graded in "
        f"{facts['grading_seconds']:.1f} s, {record['tokens_seen']:,} trained on"
    )
    if is_hacked(facts, first):
        note(
            f"warning: rewards may be hacked: responses have {facts['length']:.1f} tokens, in the "
            f"first round {first['length']:.1f}, and {facts['answer_only']:.1%} are an answer "
            f"alone, then {first['answer_only']:.1%}; read some, and reward what they lack"
        )
