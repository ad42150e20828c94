r"""Answers that are one number with words around it, such as `5\text{ million}`.

math-verify ignores the content of \text{}, and reads words elsewhere as products of letters. Where
the gold answer is one number, the words are therefore read here first.
"""

from __future__ import annotations

import re

_SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NUMBER_WORDS = re.compile(
    r"(?<!\\)\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|thirty"
    r"|(?:four|fif|six|seven|eigh|nine)t(?:een|y)|twenty|forty|half|halves|quarter"
    r"|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?"
    r"|not|neither|nor|pi|sqrt)\b",
    re.IGNORECASE,
)
"""Words that change the number when they stand beside digits."""
_CODES = "USD|EUR|GBP|JPY|CNY|INR|CAD|AUD|NZD|CHF|SEK|NOK|DKK|KRW|MXN|BRL|SGD|HKD|Rs|RM"

_GOLD = re.compile(
    r"\\?\$?[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+|\d+/\d+|\\[dt]?frac\{\d+\}\{\d+\})"
    r"\.?(?:\\?%)?\$?"
)
_WRAPPER = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|math(?:rm|bf|it|sf|tt)|operatorname)\s*"
    r"\{([^{}]*)\}"
)
_LETTER = re.compile(r"\b([A-Za-z])\b")
_GROUP = re.compile(r"(?<=\d)(?:\\[,; ]|\{,\}|~)(?=\d{3}(?!\d))")
_SPACE = re.compile(r"~|\\[,;:! ]|\\q?quad(?![A-Za-z])|\\(?=\s)")
_BOLD = re.compile(r"(\*\*|__)(.+)\1\.?", re.DOTALL)
_DEGREES = re.compile(r"(?:\^\{?\\circ\}?|\\degrees?(?![A-Za-z])|[°º])\s*(?:[CF](?![A-Za-z]))?")
_CURRENCY = re.compile(
    r"(?:\b(?:US|CA|AU|NZ|HK|[ACS]))?\\?\$|[£€¥₹₩₽¢]|\\(?:pounds|euro|yen|cent|textsterling)"
    rf"(?![A-Za-z])|\b(?:{_CODES})\b\.?(?=\s*[-+]?[\d.])"
)
_SYMBOL = r"[mgshlLNJWVA](?:\s*\^\s*\{?\s*-?[1-4]\s*\}?)?"
_UNIT = re.compile(rf"(?<=\d)\s+{_SYMBOL}(?:\s*/\s*{_SYMBOL})?(?=\.?$)")
"""Units of one letter; any other letter is a factor, as in `5 x`."""
_POWER = re.compile(r"([^\W\d_])\s*\^\s*\{?\s*-?[1-4]\s*\}?")
_NAME = re.compile(r"\\?[^\W\d_]+\s*=")
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_TWO_NUMBERS = re.compile(rf"\d.*?{_WORD.pattern}.*?\d", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d)\s*kk?(?![A-Za-z])")
_TAIL = re.compile(r"(?:[^\W_]|[\s/.,·()':&\u2019-]|\\cdot)*")


def _unwrapped(match: re.Match[str]) -> str:
    """The content of a wrapper; a single letter in text is doubled, so that `_WORD` matches it."""
    inner = match[2]
    if match[1].startswith(("text", "mbox", "hbox")):
        inner = _LETTER.sub(r"\1\1", inner)
    return f" {inner} "


def is_one_number(gold: str) -> bool:
    """Whether a gold answer is a number or a fraction of two, in digits."""
    return bool(_GOLD.fullmatch(gold.replace(r"{,}", ",").replace(" ", "")))


def one_number(answer: str, gold: str) -> str | None:
    r"""The part of an answer that is compared with the gold; None where they cannot be equal.

    Where the gold is one number, the answer's currency signs and codes, degrees, bold type and
    units go, a scale word multiplies (`2 dozen`), and an answer with two numbers, or with words
    that say another one (`5 and a half`), equals none. Everything else stays as it is.
    """
    if not is_one_number(gold):
        return answer
    text, before = answer, ""
    while text != before:
        text, before = _WRAPPER.sub(_unwrapped, text), text
    text = _SPACE.sub(" ", _GROUP.sub("", text)).strip()
    if bold := _BOLD.fullmatch(text):
        text = bold[2]
    text = _CURRENCY.sub(" ", _DEGREES.sub(" ", text))
    text = _THOUSANDS.sub(" thousand", text).strip().rstrip(".,")
    if not re.search(r"\d", text):
        return answer
    if not _WORD.search(text):
        return _UNIT.sub("", text)
    text = _POWER.sub(r"\1 ", text)  # The power of a unit, as in m^2, is no second number.
    if _TWO_NUMBERS.search(text) or _NUMBER_WORDS.search(text):
        return None
    if name := _NAME.match(text):
        text = text[name.end() :]
    first = _WORD.search(text)
    at = len(text) if first is None else first.start()
    number, tail = text[:at], text[at:]
    if not re.search(r"\d", number) or not _TAIL.fullmatch(tail):
        return answer
    words = [word.lower() for word in _WORD.findall(tail)]
    scales = [_SCALES.get(word.removesuffix("s")) for word in words]
    factor = 1
    while scales and scales[0] is not None:
        factor *= scales.pop(0) or 1
    if any(scales):
        return None
    number = number.rstrip(" (-/")
    if "percent" in words:
        number += r"\%"
    return number if factor == 1 else rf"({number})\times {factor}"
