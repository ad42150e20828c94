"""A test of programs runs in each backend that this machine has."""

from __future__ import annotations

import pytest

from t3d.grading import code
from t3d.grading.sandbox import Backend
from tests.grading.sandboxes import BACKENDS


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setattr(code, "find_backend", lambda: request.param)
    return request.param
