"""Settings of every test, and of every process that a test starts."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

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


@pytest.fixture(params=["cache", "past_key_values"])
def rename_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[type], str]:
    """Gives a model class of the library the one name for its cache that a release has.

    The other name is lost among the keywords without a word, as in the library. The function that
    does it returns the name.
    """
    name: str = request.param

    class Output(OrderedDict[str, Any]):
        __getattr__ = OrderedDict.__getitem__

    def only_that(values: dict[str, Any], cache: Any) -> dict[str, Any]:
        others = {k: v for k, v in values.items() if k not in ("cache", "past_key_values")}
        return others if cache is None else {**others, name: cache}

    def rename(model_class: type) -> str:
        forward: Any = model_class.forward  # type: ignore[attr-defined]

        def run(self: Any, ids: Any, mask: Any, position: Any, cache: Any, others: Any) -> Output:
            found = forward(self, ids, mask, position, cache, **only_that(others, None))
            return Output(only_that(found, cache))

        def new(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **kwargs):
            return run(self, input_ids, attention_mask, position_ids, cache, kwargs)

        def old(
            self,
            input_ids=None,
            attention_mask=None,
            position_ids=None,
            past_key_values=None,
            **kwargs,
        ):
            return run(self, input_ids, attention_mask, position_ids, past_key_values, kwargs)

        monkeypatch.setattr(model_class, "forward", new if name == "cache" else old)
        return name

    return rename


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test over the benchmarks' files is none where there are no such files."""

    def is_empty(item: pytest.Item) -> bool:
        reasons = [str(mark.kwargs.get("reason")) for mark in item.iter_markers("skip")]
        return any("got empty parameter set" in reason for reason in reasons)

    empty = [item for item in items if is_empty(item)]
    config.hook.pytest_deselected(items=empty)
    items[:] = [item for item in items if not is_empty(item)]
