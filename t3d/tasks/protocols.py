"""How problems are put to a model, and how a program is read out of its answer.

`standard` goes through the model's own chat template. `t3d` is the prompt of T3D's authors byte
for byte, which fixes the template's tokens too. Their template engine drops the last newline of
the whole prompt: a math prompt ends with `assistant`, a code prompt lacks its prefix's last one.
"""

from __future__ import annotations

import re
from typing import Literal

ProtocolName = Literal["standard", "t3d"]

CODE_HEADER = "Here is the completed code:\n```python\n"
"""How the assistant's turn begins in both protocols: inside an open block."""
_FENCE = "```"
_MATH = "Please reason step by step, and put your final answer within \\boxed{}."
_CODE = (
    "Place your code within a single Python code block ```python ```. "
    "Do not include more than one code block."
)
_STDIO = (
    "You should put your code in ```python ```. "
    "Use input() to read input and print() to produce output in your script."
)
_BLOCK = re.compile(r"```python(.*?)```", re.DOTALL)


def math_turn(question: str) -> str:
    """The user's turn of a math problem."""
    return f"{question}\n{_MATH}"


def code_turn(question: str, *, stdio: bool = False) -> str:
    """The user's turn of a programming problem; `stdio` asks for a main program."""
    return f"This is the problem:\n{question}\n{_STDIO if stdio else _CODE}"


def t3d_math(question: str) -> str:
    """The authors' whole prompt of a math problem."""
    return _t3d(math_turn(question), "")


def t3d_code(question: str, prefix: str, *, stdio: bool = False) -> str:
    """The authors' whole prompt of a programming problem; a space ends the user's turn."""
    return _t3d(f"{code_turn(question, stdio=stdio)} ", prefix)


def _t3d(turn: str, prefix: str) -> str:
    prompt = f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n{prefix}"
    return prompt.removesuffix("\n")


def open_block(prefix: str, output: str) -> str:
    """The program that a prefix opens and an output goes on with, up to the closing fence.

    An output that ends before the fence counts as far as it goes; text after the fence does not.
    """
    return prefix.partition("```python\n")[2] + output.partition(_FENCE)[0]


def last_block(text: str) -> str | None:
    """The authors' rule: the last closed ```python block of prefix and output; None without one."""
    blocks = _BLOCK.findall(text)
    return blocks[-1].strip() if blocks else None
