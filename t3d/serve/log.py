"""The server's log: lines of JSON on stderr."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any


def log(**record: Any) -> None:
    """Write one line; none holds text of a prompt or an answer."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"time": now, **record}), file=sys.stderr, flush=True)
