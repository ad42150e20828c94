"""How many responses to generated problems are sentences: `python -m benchmarks.tellings RUN`.

Grading reads names, equations and the answer. It does not see a sentence that begins in one
telling and ends in another ("so 7 shells in Ben."), which is what few-step decoding writes. The
generator has a list of every opening, equation, closing and final sentence, so that one pattern
says whether it could have written a response, whatever its numbers and names.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from t3d.evaluation.evaluate import Evaluation
from t3d.report.sheets import percent
from t3d.tasks import generated, mini_gsm, mini_week

_DAY = "|".join(generated.WEEK)
_WORDS = {
    "name": "|".join(generated.NAMES),
    "item": "|".join(generated.ITEMS),
    "event": "|".join(generated.EVENTS),
    "day": _DAY,
    "op": r"[-+*]",
    "a": rf"\d+|{_DAY}",
    "k": r"\d+",
    "b": rf"\d+|{_DAY}",
}


def _pattern(template: str) -> str:
    """A regular expression for all that a template can tell."""
    told = re.escape(template.format_map({word: f"<{word}>" for word in _WORDS}))
    return re.sub(r"<(\w+)>", lambda word: f"(?:{_WORDS[word[1]]})", told)


def _any(templates: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(map(_pattern, templates))})"


def whole(task: str) -> re.Pattern[str]:
    """Matches the responses that a generated task could have written."""
    tellings = {"mini_gsm": mini_gsm, "mini_week": mini_week}[task]
    opening = _any(tuple(f"{text} " if text else "" for text in tellings.OPENING))
    step = opening + _any(generated.EQUATION) + _any(tellings.CLOSING)
    return re.compile(rf"(?:{step} )+{_any(tellings.FINAL)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("run", type=Path, help="output of t3d run, compare or eval")
    table = Table("method", "seed", "block", "steps", "remasking", "n", "correct", "sentences")
    for path in sorted(parser.parse_args().run.glob("evaluation/**/row.json")):
        evaluation = Evaluation.load(path.parent)
        row, pattern = evaluation.row, whole(evaluation.row.task)
        told = sum(pattern.fullmatch(sample.output) is not None for sample in evaluation.samples)
        remasking = row.decoding.remasking.removeprefix("low_confidence_")
        d = row.decoding
        facts = (row.method, row.seed, d.block_size, d.denoising_steps, remasking, row.n)
        table.add_row(*map(str, facts), percent(row.accuracy), percent(told / row.n))
    Console().print(table)


if __name__ == "__main__":
    main()
