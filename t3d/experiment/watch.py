"""A small few-step evaluation between optimizer steps; the best checkpoint is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from t3d.core.files import write_bytes, write_json
from t3d.evaluation.config import WatchConfig
from t3d.evaluation.evaluate import evaluate
from t3d.models import LanguageModel
from t3d.tasks import Example, Task
from t3d.tasks.records import read_json_lines
from t3d.training.trainer import TrainingCallback

LOG_FILE, BEST = "watch.jsonl", "best"


class Watch(TrainingCallback):
    """Evaluates the student while it trains, for `fit` and `distill`, without changing training.

    `few_step_accuracy` over `few_step_n` problems goes to the trainer's metrics and to
    watch.jsonl in the training directory, the first of the best checkpoints to best/ there.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        problems: Sequence[Example],
        config: WatchConfig,
        *,
        batch_size: int = 64,
        directory: Path | None = None,
        num_before: int = 0,
        is_last: bool = True,
    ) -> None:
        """
        Args:
            lm: the model in training.
            task: the benchmark.
            problems: its problems, of which the first are evaluated.
            config: when, how many and how.
            batch_size: problems decoded at the same time.
            directory: of log and best checkpoint, by default the training directory.
            num_before: optimizer steps of the rounds before.
            is_last: whether no round follows, so that the last step is evaluated in any case.
        """
        self.directory = directory
        self.num_before = num_before
        self.is_last = is_last
        self.lm = lm
        self.task = task
        self.problems = problems[: config.num_problems]
        self.config = config
        self.batch_size = batch_size
        self.rows: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = (self.directory or Path(args.output_dir)) / LOG_FILE
        rows = [row for _, row in read_json_lines(path)] if path.exists() else []
        # Rows beyond the checkpoint that training resumes from will be written again.
        self.rows = [row for row in rows if row["step"] <= self.num_before + state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = self.num_before + state.global_step
        is_end = self.is_last and state.global_step == state.max_steps
        if step % self.config.every and not is_end:
            return
        found: list[dict[str, float] | None] = [None]
        if state.is_world_process_zero:
            found = [self._evaluate()]
            directory = self.directory or Path(args.output_dir)
            self._keep(directory, {"step": step, **(found[0] or {})})
        [measured] = broadcast_object_list(found)
        assert measured is not None
        self.trainer.record(dict(measured))

    def _evaluate(self) -> dict[str, float]:
        model = self.lm.model.eval()
        row = evaluate(
            self.lm,
            self.task,
            self.problems,
            self.config.decoding,
            batch_size=self.batch_size,
            progress=False,
        ).row
        model.train()
        return {"few_step_accuracy": row.accuracy, "few_step_n": row.n}

    def _keep(self, directory: Path, row: dict[str, float]) -> None:
        """Add a line to the log; before that, save the checkpoint if it is the best so far."""
        key = "few_step_accuracy"
        directory.mkdir(parents=True, exist_ok=True)
        if all(row[key] > other[key] for other in self.rows):
            partial = directory / f"{BEST}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            self.trainer.save_student(partial)
            write_json(partial / "watch.json", row)
            shutil.rmtree(directory / BEST, ignore_errors=True)
            partial.rename(directory / BEST)
        self.rows.append(row)
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_bytes(directory / LOG_FILE, lines.encode())
