"""GSM8K: 8792 grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import re
from typing import ClassVar

from t3d.tasks.benchmark import MathBenchmark, Splits
from t3d.tasks.records import Record

NUM_DEV = 500
"""Problems that end the training file and are kept from training."""
_CALCULATION = re.compile(r"<<[^<>]*>>")


class GSM8K(MathBenchmark):
    """Test is the published one; dev is the end of the published training set."""

    name = "gsm8k"
    splits: ClassVar[Splits] = {
        "train": ("gsm8k_train.jsonl", slice(None, -NUM_DEV)),
        "dev": ("gsm8k_train.jsonl", slice(-NUM_DEV, None)),
        "test": ("gsm8k_test.jsonl", slice(None)),
    }

    def worked_answer(self, record: Record) -> str | None:
        """The rationale without calculator annotations, its last line the answer in a box."""
        if record.reference is None:
            return None
        rationale = _CALCULATION.sub("", record.reference.rpartition("####")[0]).strip()
        return f"{rationale}\nThe answer is \\boxed{{{record.answer}}}."
