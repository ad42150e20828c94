"""Settings of every test, and of every process that a test starts."""

from __future__ import annotations

import os

# Read when torch and transformers are first imported, so set before either is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

from hypothesis import settings

# The same examples at every run; a busy machine is no failure.
settings.register_profile("t3d", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("t3d")
