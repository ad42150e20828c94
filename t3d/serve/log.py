"""The server's log: lines of JSON on stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


def log(**record: Any) -> None:
    """Write one line; none holds text of a prompt or an answer."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"time": now, **record}), file=sys.stderr, flush=True)


class LogHandler(logging.Handler):
    """Writes what libraries log as lines of the same kind."""

    def emit(self, record: logging.LogRecord) -> None:
        log(error=logging.Formatter().format(record))
