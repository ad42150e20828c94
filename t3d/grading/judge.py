"""The process that has the expected values and compares them with the values of the child.

Runs inside the sandbox, so it imports the standard library only. It trusts no message of the child.
`runner.py` holds it to the same limits, so a child cannot make it compute for ever.
"""

from __future__ import annotations

import os
import re
import socket

from t3d.grading.values import decode, receive, send

TYPE_CHECKING = False  # Importing typing costs as much as starting the interpreter.
if TYPE_CHECKING:
    from typing import Any

_REASON = re.compile(r"assertion|memory|syntax|error: [A-Za-z_]\w{0,63}", re.ASCII)


class Judge:
    """Talks with one child until there is a verdict."""

    def __init__(self, job: dict[str, Any], channel: socket.socket) -> None:
        self.job = job
        self.channel = channel
        self.nonce: str | None = None
        """Random word that is sent with the tests; only a child that ran them can repeat it."""
        self.held: set[int] = set()
        self.broken: set[int] = set()
        """Checks that the child has asked about and that did not hold; `held` are those that
            did."""

    def verdict(self) -> str:
        """Talk with the child until the verdict, and return its reason.

        Raises:
            Exception: any exception, if the child sends something that is no message.
        """
        send(self.channel, {key: self.job[key] for key in ("program", "stdin", "limits")})
        while (reason := self._hear(receive(self.channel))) is None:
            pass
        return reason

    def _hear(self, message: Any) -> str | None:
        """Answer a message of the child, or name the verdict."""
        checks = self.job["checks"]
        match message:
            case ["ready"] if self.nonce is None:
                self.nonce = os.urandom(16).hex()
                tests = {key: self.job[key] for key in ("tests", "ask")}
                send(self.channel, tests | {"nonce": self.nonce})
                return None
            case ["ask", int(check), list(values)] if self.nonce and 0 <= check < len(checks):
                holds = self._holds(checks[check]["template"], values)
                (self.held if holds else self.broken).add(check)
                send(self.channel, holds)
                return None
            case ["passed", str(nonce)] if nonce == self.nonce:
                required = {i for i, check in enumerate(checks) if check["required"]}
                if required & self.broken:
                    return "assertion"
                return "passed" if self.held and required <= self.held else "no_verdict"
            case ["failed", str(reason)] if _REASON.fullmatch(reason):
                return reason
        return "no_verdict"

    def _holds(self, template: str, values: list[Any]) -> bool:
        """Evaluate a check with the child's values in its holes `_0`, `_1`, ..."""
        try:
            holes = {f"_{i}": decode(value) for i, value in enumerate(values)}
            return bool(eval(template, holes))
        except Exception:  # The values do not decode, or cannot be compared like that.
            return False
