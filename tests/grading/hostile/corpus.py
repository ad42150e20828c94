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
    "SYSCALL": """
import ctypes, platform
column = ["x86_64", "aarch64"].index(platform.machine())
NUMBERS = {
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "io_uring_setup": (425, 425),
}
def call(name, *arguments):
    whole = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return ctypes.CDLL(None).syscall(ctypes.c_long(NUMBERS[name][column]), *whole)
""",
    "OTHERS": """
import os
others = [int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1, os.getpid())]
""",
    "ANY": "assertion|no_verdict|timeout|memory",
}
_SAYS = """
@CHANNEL@
send(["ready"])
job = receive()
for check in range(2):
    send(["ask", check, [VALUE]])
    receive()
send(["passed", job["nonce"]])
time.sleep(1000)
"""
_VALUES = {
    "no_tag": "[]",
    "no_value": "['int']",
    "no_number": "['int', 'spam']",
    "a_number": "['int', 9]",
    "a_long_integer": "['int', '0x' + 'f' * (30 << 20)]",
    "a_tag_that_is_a_list": "[['list'], 9]",
    "an_unknown_tag": "['__import__', 'os']",
    "an_object": "{'int': '0x9'}",
    "a_huge_complex": "['complex', 10 ** 400, 0]",
    "three_parts": "['complex', 1, 2, 3]",
    "odd_bytes": "['bytes', 'f']",
    "bytes_of_a_number": "['bytes', 9]",
    "a_dict_of_numbers": "['dict', 9, 16]",
    "a_set_of_lists": "['set', ['list']]",
    "deep": "(lambda deep: [deep := ['list', deep] for _ in range(400)][-1])([])",
    "a_fraction_of_zero": "['Fraction', '0x1', '0x0']",
    "a_text_fraction": "['Fraction', '1/0']",
    "a_long_fraction": "['Fraction', hex(3 ** 650000), hex(7 ** 350000)]",
    "no_decimal": "['Decimal', 'spam']",
    "a_decimal_of_a_list": "['Decimal', [1, 2]]",
    "a_signalling_decimal": "['Decimal', 'sNaN']",
    "a_large_decimal": "['Decimal', '1e400000000']",
    "colliding_integers": "['set', *(['int', hex(k * (2**61 - 1))] for k in range(200000))]",
    "colliding_keys": "['dict', *([['int', hex(k * (2**61 - 1))], 0] for k in range(200000))]",
}
"""What no honest child sends."""


def _expand(text: str) -> str:
    for macro, source in _MACROS.items():
        text = text.replace(f"@{macro}@", source)
    return text


def read(name: str) -> dict[str, tuple[str, str]]:
    """Reasons and sources by the programs' names."""
    text = _expand(Path(__file__).with_name(f"{name}.txt").read_text())
    parts = re.split(r"^## (\w+) \| (.+)\n", text, flags=re.MULTILINE)[1:]
    names, reasons, sources = parts[::3], parts[1::3], parts[2::3]
    return {
        f"{name}_{key}": (reason, source)
        for key, reason, source in zip(names, reasons, sources, strict=True)
    }


FORGED = read("forged")
SAID = {
    f"said_{name}": (_MACROS["ANY"], _expand(_SAYS).replace("VALUE", value))
    for name, value in _VALUES.items()
}
FILES = ("broken", "limits", "exits", "escapes", "spoken", "kernel")
CORPUS = {name: item for file in FILES for name, item in read(file).items()} | FORGED | SAID
