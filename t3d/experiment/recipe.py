"""Recipes: the whole configuration of a run or a comparison, as typed dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t3d.core.dtypes import Dtype
from t3d.core.ranges import WORKERS, check_choices, check_ranges
from t3d.decoding.config import RolloutConfig
from t3d.evaluation.config import EvaluationConfig, WatchConfig
from t3d.tasks import TASKS, ProtocolName, Split, Task, domains, get_task, mixture
from t3d.tasks.base import Domain
from t3d.tasks.mixture import check_names, repeated
from t3d.training.config import SEEDS, MethodConfig, PretrainConfig, TrainingConfig


@dataclass(frozen=True)
class DataConfig:
    """Problems of the task.

    Args:
        num_prompts: training prompts that the teacher rolls out; their answers are not read.
        num_responses: responses to each prompt, every one a training sequence; they differ as far
            as the temperature lets them.
        seed: seed of the training problems of generated tasks.
        split: split that is evaluated.
        num_problems: number of evaluated problems.
        prompts: your own training prompts instead of the task's: a .jsonl with the key question,
            and `domain: code` where the task asks for programs.
            A task that is one .jsonl of your own needs them, as its lines are what is evaluated.
        folder: folder of the benchmark's files; by default the one of `t3d data download`.
        protocol: standard, or t3d for the prompts and tests of T3D's authors byte for byte.
        unsafe_exec: run the programs of code benchmarks without the sandbox.
    """

    num_prompts: int = 4000
    num_responses: int = 1
    seed: int = 0
    split: Split = "test"
    num_problems: int = 500
    prompts: Path | None = None
    folder: Path | None = None
    protocol: ProtocolName = "standard"
    unsafe_exec: bool = False

    def __post_init__(self) -> None:
        ranges = {"[0, inf)": "num_prompts num_problems", "[1, inf)": "num_responses"}
        check_ranges(self, ranges | {"(-inf, inf)": "seed"}, where="data: ")

    @property
    def num_sequences(self) -> int:
        """Largest number of trajectories."""
        return self.num_prompts * self.num_responses


@dataclass(frozen=True)
class AdaptConfig:
    """A teacher made of an autoregressive chat model.

    Args:
        source: the autoregressive model, as in `t3d convert`: a folder, a Hub name, a .gguf file,
            or package:NAME for the .gguf in an installed Python package.
        pretrain: settings of the adaptation; `model` is left out.
    """

    source: str
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass(frozen=True)
class RunConfig:
    """A recipe of the whole route.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from t3d.evaluation.config import EvaluationConfig
    >>> from t3d.experiment.recipe import DataConfig
    >>> decoding = t3d.DecodingConfig(max_new_tokens=96)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = t3d.RunConfig(
    ...         output=Path(folder, "run"),
    ...         data=DataConfig(num_prompts=2, num_problems=2),
    ...         rollout=t3d.RolloutConfig(decoding),
    ...         methods={"naive_td": t3d.MethodConfig("naive_td")},
    ...         training=t3d.TrainingConfig(steps=1, batch_size=2, micro_batch_size=2),
    ...         evaluation=EvaluationConfig((decoding,), measure_latency=False),
    ...     )
    ...     [cell.row.method for cell in t3d.run(config, progress=False)]
    ['original', 'naive_td']

    Args:
        model: the teacher: a checkpoint directory, a Hub name, or mini_teacher.
        shape: the model's config.json, or the keys of it that determine the number of parameters;
            only read by --dry_run, where the model is not on this machine.
        adapt: how the teacher is made in OUTPUT/teacher, instead of `model`.
        task: the benchmark that gives prompts and problems, or a folder of your own with
            train.jsonl, dev.jsonl (for watch and `t3d calibrate`) and test.jsonl; or a list of
            them, which give equally many prompts and are evaluated one by one.
        output: the run's directory.
        dtype: number format in which models decode; auto is bfloat16 on a GPU and float32 on a CPU.
            For the arithmetic of training there is training.dtype.
        data: problems.
        rollout: how the teacher decodes the training prompts.
        methods: checkpoint name -> method; `original` is always evaluated beside them.
        seeds: seeds of training, with each of which every method is trained once; where there are
            none, training.seed is used alone.
        recommended: the method that the others are compared with; by default the original.
        training: settings of the optimisation, shared by all methods.
        watch: a few-step evaluation on the dev split while students train; the best checkpoint is
            kept beside its log, in OUTPUT's hidden training directories or, of a method in rounds,
            in OUTPUT/rounds.
        evaluation: decoding settings to evaluate.
        num_workers: processes that roll out, train and evaluate at the same time.
    """

    model: str = "mini_teacher"
    shape: dict[str, Any] = field(default_factory=dict)
    adapt: AdaptConfig | None = None
    task: str | list[str] = "mini_gsm"
    output: Path = Path("runs/demo")
    dtype: Dtype = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    methods: dict[str, MethodConfig] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    recommended: str | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    watch: WatchConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.watch is not None and self.training.sharding == "full":
            raise ValueError(
                "watch: decodes with the model that one process holds; "
                "set training.sharding to none, or leave watch out"
            )
        check_ranges(self, {WORKERS: "num_workers", SEEDS: "seeds"})
        check_choices(self, "dtype")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must name each seed once, got {list(self.seeds)}")
        if self.recommended is not None and self.recommended not in self.methods:
            raise ValueError(
                f"recommended={self.recommended!r} is none of the methods: "
                f"{', '.join(self.methods) or 'there are none'}"
            )
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"task must name each task once, got {self.tasks}")
        for task in self.tasks:
            if task.endswith(".jsonl") and (self.data.prompts is None or self.watch is not None):
                key = "data.prompts" if self.data.prompts is None else "watch"
                raise ValueError(
                    f"task: {task} is one file, so {key} would take the problems that are "
                    "evaluated; name a folder with train.jsonl, dev.jsonl and test.jsonl instead"
                )

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks."""
        return [self.task] if isinstance(self.task, str) else self.task

    def prompt_set(self, num_responses: int | None = None) -> Task:
        """The task that gives the training prompts: the recipe's, or a file of your own.

        Args:
            num_responses: how many times each comes; by default as often as `data` says.
        """
        data = self.data
        if data.prompts is None:
            task = mixture(self.problem_sets())
        else:
            task = get_task(str(data.prompts), protocol=data.protocol, unsafe_exec=data.unsafe_exec)
        return repeated(task, num_responses or data.num_responses)

    def check_prompts(self) -> None:
        """Check that your own prompts, as far as they are there, ask for what the tasks do.

        Raises:
            ValueError: for prompts that ask for programs where no task does, or the other way.
        """
        prompts = self.data.prompts
        own = [Path(task) for task in self.tasks if task not in TASKS]
        if prompts is None or not all(path.exists() for path in (prompts, *own)):
            return
        asked = set[Domain]().union(*map(domains, self.tasks))
        if unfit := domains(str(prompts)) - asked:
            what = {"math": "final answers", "code": "programs"}
            [lines], [wanted] = ([what[kind] for kind in kinds] for kinds in (unfit, asked))
            raise ValueError(
                f"data.prompts: {prompts} has lines that ask for {lines}, but "
                f"{', '.join(self.tasks)} for {wanted}; give prompts of one kind, whose "
                "lines have the key 'domain' with the value 'code' where they ask for programs"
            )

    def problem_sets(self) -> list[Task]:
        """The tasks.

        Raises:
            ValueError: for an unknown one, options that it does not take, or two of one name.
        """
        data = self.data
        options: dict[str, Any] = {"data": data.folder, "protocol": data.protocol}
        found = [get_task(task, unsafe_exec=data.unsafe_exec, **options) for task in self.tasks]
        check_names(found)
        return found


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """A recipe of `t3d compare`, with three seeds by default.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from t3d.evaluation.config import EvaluationConfig
    >>> from t3d.experiment.recipe import DataConfig
    >>> decoding = t3d.DecodingConfig(max_new_tokens=96)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = t3d.CompareConfig(
    ...         output=Path(folder, "compare"),
    ...         seeds=(0, 1),
    ...         data=DataConfig(num_prompts=2, num_problems=2),
    ...         rollout=t3d.RolloutConfig(decoding),
    ...         methods={"naive_td": t3d.MethodConfig("naive_td")},
    ...         training=t3d.TrainingConfig(steps=1, batch_size=2, micro_batch_size=2),
    ...         evaluation=EvaluationConfig((decoding,), measure_latency=False),
    ...     )
    ...     comparison = t3d.compare(config, progress=False)
    >>> [comparison.seeds(name, comparison.conditions[0]) for name in comparison.methods]
    [(0, 1), (0,)]
    """

    output: Path = Path("runs/compare")
    seeds: tuple[int, ...] = (0, 1, 2)
