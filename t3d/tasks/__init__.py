"""Benchmarks: prompts and graders."""

from __future__ import annotations

from pathlib import Path

from t3d.tasks.base import Domain, Example, Grade, Split, Task
from t3d.tasks.benchmark import Benchmark, CodeBenchmark
from t3d.tasks.generated import GeneratedTask
from t3d.tasks.gsm8k import GSM8K
from t3d.tasks.humaneval import HumanEval
from t3d.tasks.math500 import MATH500
from t3d.tasks.mbpp import MBPP, SanitizedMBPP
from t3d.tasks.mini_gsm import MiniGSM
from t3d.tasks.mini_week import MiniWeek
from t3d.tasks.mixture import mixture
from t3d.tasks.own import OwnQuestions, split_files
from t3d.tasks.protocols import ProtocolName

_BENCHMARKS: dict[str, type[Benchmark]] = {
    benchmark.name: benchmark for benchmark in (GSM8K, MATH500, HumanEval, MBPP, SanitizedMBPP)
}
GENERATED: dict[str, type[GeneratedTask]] = {task.name: task for task in (MiniGSM, MiniWeek)}
TASKS = (*GENERATED, *_BENCHMARKS)

__all__ = [
    "GENERATED",
    "TASKS",
    "Example",
    "Grade",
    "ProtocolName",
    "Split",
    "Task",
    "get_task",
    "mixture",
]


def get_task(
    name: str,
    *,
    data: Path | None = None,
    protocol: ProtocolName = "standard",
    unsafe_exec: bool = False,
) -> Task:
    """A benchmark by name, or questions of one's own by the path of a .jsonl or of a folder.

    >>> t3d.get_task("mini_gsm").examples("test", 1)[0].answer
    '12'

    Args:
        name: one of `TASKS`, or a path that ends in .jsonl, or a folder with train.jsonl,
            dev.jsonl and test.jsonl, as far as there are problems of these splits.
        data: a folder with the benchmarks' files; what `t3d data download` fetched by default.
        protocol: `standard`, through the model's chat template, or `t3d`, the prompts and tests
            of T3D's authors byte for byte.
        unsafe_exec: run the programs of code tasks without the sandbox.

    Raises:
        ValueError: for an unknown name, or an option that the task does not take.
    """
    if protocol not in ("standard", "t3d"):
        raise ValueError(f"unknown protocol {protocol!r}; choose one of standard, t3d")
    if name.endswith(".jsonl") or (name not in TASKS and split_files(Path(name))):
        if data is not None:
            raise ValueError(f"{name}: holds its problems itself; leave out data")
        return OwnQuestions(Path(name), protocol, unsafe_exec=unsafe_exec)
    if name in GENERATED:
        if data is not None or protocol != "standard":
            raise ValueError(f"{name} is generated; leave out data and protocol")
        return GENERATED[name]()
    if name not in _BENCHMARKS:
        raise ValueError(
            f"unknown task {name!r}; choose one of {', '.join(TASKS)}, "
            "or a path that ends in .jsonl, or a folder that holds train.jsonl and test.jsonl"
        )
    if name == SanitizedMBPP.name and protocol != "standard":
        raise ValueError(f"{name} is none of the authors' tasks; leave out protocol")
    return _BENCHMARKS[name](data, protocol, unsafe_exec=unsafe_exec)


def domains(name: str) -> set[Domain]:
    """What the problems of a task ask for; of a benchmark without reading its files."""
    if name in TASKS:
        return {"code" if issubclass(_BENCHMARKS.get(name, Benchmark), CodeBenchmark) else "math"}
    task = get_task(name)
    assert isinstance(task, OwnQuestions)
    return task.domains()
