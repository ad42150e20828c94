"""Benchmarks: prompts and graders."""

from t3d.tasks.base import Example, Grade, Split, Task
from t3d.tasks.mini_gsm import MiniGSM

TASKS: dict[str, type[Task]] = {"mini_gsm": MiniGSM}

__all__ = ["TASKS", "Example", "Grade", "MiniGSM", "Split", "Task", "get_task"]


def get_task(name: str) -> Task:
    """A benchmark by name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]()
