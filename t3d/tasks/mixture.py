"""Tasks made of tasks: several as one to train on, and one with several responses a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from t3d.tasks.base import Example, Grade, Split, Task


def check_names(tasks: Sequence[Task]) -> None:
    """Raises: ValueError if two tasks have one name, by which their results are told apart."""
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"task: two of them are {twice}, with the same problems to evaluate; name each once"
        )


def mixture(tasks: Sequence[Task]) -> Task:
    """The task itself where there is one.

    Raises:
        ValueError: if two tasks have one name.
    """
    assert tasks
    check_names(tasks)
    return tasks[0] if len(tasks) == 1 else Mixture(tasks)


class Mixture:
    """Examples of several tasks in turn, each graded by its own."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.name = "+".join(self.tasks)

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        """Equally many of each; fewer where a task has no more."""
        share = -(-num // len(self.tasks))
        own = [
            [replace(e, id=f"{name}:{e.id}") for e in task.examples(split, share, seed=seed)]
            for name, task in self.tasks.items()
        ]
        turns = (found[i : i + 1] for i in range(share) for found in own)
        return list(chain.from_iterable(turns))[:num]

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        grades: dict[int, Grade] = {}
        for name, task in self.tasks.items():
            own = [i for i, e in enumerate(examples) if e.id.startswith(f"{name}:")]
            asked = [replace(examples[i], id=examples[i].id.removeprefix(f"{name}:")) for i in own]
            found = task.grade(asked, [outputs[i] for i in own])
            grades |= dict(zip(own, found, strict=True))
        return [grades[i] for i in range(len(examples))]


def repeated(task: Task, num_responses: int) -> Task:
    """The task with every prompt several times; itself if once is enough."""
    return task if num_responses == 1 else Repeated(task, num_responses)


class Repeated:
    """A task whose every example comes several times.

    Each has an id of its own, from which a rollout draws other random numbers.
    """

    def __init__(self, task: Task, num_responses: int) -> None:
        self.task = task
        self.num_responses = num_responses
        self.name = task.name

    def examples(self, split: Split, num: int, *, seed: int = 0) -> list[Example]:
        """The first `num` examples of the task, each `num_responses` times in a row."""
        numbers = range(self.num_responses)
        found = self.task.examples(split, num, seed=seed)
        return [replace(e, id=f"{e.id}#{number}") for e in found for number in numbers]

    def grade(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Grade]:
        own = [replace(e, id=e.id.rpartition("#")[0]) for e in examples]
        return self.task.grade(own, outputs)
