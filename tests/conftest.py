"""Settings of every test, and of every process that a test starts."""

from __future__ import annotations

import os

# Read when torch and transformers are first imported, so set before either is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["MPLBACKEND"] = "agg"

import pytest
from hypothesis import settings

# The same examples at every run; a busy machine is no failure.
settings.register_profile("t3d", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("t3d")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test over the benchmarks' files is none where there are no such files."""

    def is_empty(item: pytest.Item) -> bool:
        reasons = [str(mark.kwargs.get("reason")) for mark in item.iter_markers("skip")]
        return any("got empty parameter set" in reason for reason in reasons)

    empty = [item for item in items if is_empty(item)]
    config.hook.pytest_deselected(items=empty)
    items[:] = [item for item in items if not is_empty(item)]
