"""Programs that must not pass `TESTS`, from the text files of this folder.

A file is sections of a line `## NAME | REASON`, the verdict's reason as a regular expression,
and the source. `@HONEST@` is the right answer: a program that tries to get out passes if it can.
`@SECRET@` is a file of the user, `@OUTSIDE@` a path to write, `@PORT@` a port that listens.
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = ("def check(g):\n    assert g(3) == 9\n    assert g(-4) == 16\n\ncheck(f)",)
LOOPED = ("for x in (3, -4):\n    assert f(x) == x * x",)
"""The same without an expected value to hide, so nothing is required of the channel."""
HONEST = "def f(x):\n    return x * x\n"

_MACROS = {
    "HONEST": HONEST,
    "NUL": "\0",
    "DEEP": "(" * 3000 + ")" * 3000,
    "EVERY_DESCRIPTOR": """
import os
def tell(*texts):
    for fd in range(64):
        for text in texts:
            try:
                os.write(fd, text if isinstance(text, bytes) else text.encode())
            except OSError:
                pass
""",
    "CHANNEL": """
import json, os, socket, struct, sys, time
frame = sys._getframe()
while "channel" not in frame.f_locals:
    frame = frame.f_back
channel = frame.f_locals["channel"]
def send(message):
    data = json.dumps(message).encode()
    channel.sendall(struct.pack("!I", len(data)) + data)
def receive():
    size = struct.unpack("!I", channel.recv(4, socket.MSG_WAITALL))[0]
    return json.loads(channel.recv(size, socket.MSG_WAITALL))
""",
}


def read(name: str) -> dict[str, tuple[str, str]]:
    """Reasons and sources by the programs' names."""
    text = Path(__file__).with_name(f"{name}.txt").read_text()
    parts = re.split(r"^## (\w+) \| (.+)\n", text, flags=re.MULTILINE)[1:]
    for macro, source in _MACROS.items():
        parts = [part.replace(f"@{macro}@", source) for part in parts]
    return dict(zip(parts[::3], zip(parts[1::3], parts[2::3], strict=True), strict=True))


FORGED = read("forged")
CORPUS = read("broken") | read("limits") | read("exits") | read("escapes") | FORGED
