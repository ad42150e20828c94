"""Answers graded by real processes; the error rates of both rules on committed pairs.

| pairs.jsonl | pairs | math-verify errs | string rule errs |
|---|---|---|---|
| equivalent | 129 | 13 (10 %) | 88 (68 %) |
| not equivalent | 99 | 8 (8 %) | 6 (6 %) |

The pairs were chosen to be hard: these are no error rates on a benchmark's outputs.
`python -m benchmarks.grading` prints the same with times, and grades whole files of gold answers.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.grading import workers
from t3d.grading.math import MathVerdict, grade_answers, last_boxed, string_match

PAIRS = [
    json.loads(line) for line in Path(__file__).with_name("pairs.jsonl").read_text().splitlines()
]
DATA = Path(__file__).parents[3] / "shared" / "data"
GOLDS = [path for path in (DATA / "math500.jsonl", DATA / "gsm8k_test.jsonl") if path.exists()]

# A stand-in for math-verify whose answers say what shall happen to the process.
STAND_IN = """
import fcntl, os, signal, sys, threading, time

def parse(text, parsing_timeout):
    return text.removeprefix("\\\\boxed{").removesuffix("}")

def verify(gold, answer, timeout_seconds):
    kind, _, rest = answer.partition(" ")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "exit":
        os._exit(0)
    elif kind == "spin":
        while True:
            pass
    elif kind == "sleep":
        time.sleep(1000)
    elif kind == "hold":
        held = open(rest, "w")
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("held")
        held.flush()
        time.sleep(1000)
    elif kind == "raise":
        raise RecursionError
    elif kind == "print":
        print("1" * 100, flush=True)
        os.write(2, b"1")
        return False
    elif kind == "allocate":
        return bool(bytearray(4 << 30))
    elif kind == "thread":
        return threading.current_thread() is threading.main_thread()
    elif kind == "modules":
        return not {"torch", "t3d"} & set(sys.modules)
    return gold == answer
"""
FATES: list[tuple[str, str, workers.Outcome]] = [
    ("1", "1", "equal"),
    ("crash", "crash", "died"),
    ("2", "1", "different"),
    ("raise", "raise", "different"),
    ("spin", "spin", "timeout"),
    ("thread", "", "equal"),
    ("sleep", "sleep", "timeout"),
    ("exit", "exit", "died"),
    ("print", "print", "different"),
    ("modules", "", "equal"),
    ("a line\nbreak, an ä and a \ud800", "a line\nbreak, an ä and a \ud800", "equal"),
    ("9" * 2**20, "9" * 2**20, "equal"),
]
if sys.platform == "linux":
    FATES.append(("allocate", "", "different"))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a `math_verify` and a `sympy` that workers import instead of the real ones."""
    (tmp_path / "sympy/core").mkdir(parents=True)
    (tmp_path / "sympy/core/random.py").write_text("def seed(number): pass")
    (tmp_path / "math_verify.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(workers, "TIME_LIMIT", 0.25)
    return tmp_path


def test_both_rules_err_on_exactly_the_known_pairs() -> None:
    outputs = [f"So it is $\\boxed{{{row['answer']}}}$." for row in PAIRS]
    verdicts = grade_answers(outputs, [row["gold"] for row in PAIRS])
    assert [verdict.final_answer for verdict in verdicts] == [row["answer"] for row in PAIRS]
    assert not any(verdict.timed_out for verdict in verdicts)
    for row, verdict in zip(PAIRS, verdicts, strict=True):
        rules = {"math_verify": verdict.correct, "string": verdict.string_correct}
        errs = [rule for rule, equal in rules.items() if equal != row["equivalent"]]
        assert errs == row["errs"], row


@pytest.mark.parametrize(
    ("equivalent", "errors"),
    [(True, [129, 13, 88]), (False, [99, 8, 6])],
    ids=["equivalent", "not_equivalent"],
)
def test_the_table_of_this_module_counts_the_pairs(equivalent: bool, errors: list[int]) -> None:
    rows = [row for row in PAIRS if row["equivalent"] == equivalent]
    assert len({(row["answer"], row["gold"]) for row in rows}) == len(rows)
    known = [sum(rule in row["errs"] for row in rows) for rule in ("math_verify", "string")]
    assert [len(rows), *known] == errors


@pytest.mark.parametrize("path", GOLDS, ids=[path.stem for path in GOLDS])
def test_gold_answers_are_graded_right(path: Path) -> None:
    """A sample; `benchmarks/grading.py` grades them all."""
    rows = [json.loads(line) for line in path.read_text().splitlines()][::50]
    boxed = [f"\\boxed{{{row['answer']}}}" for row in rows]
    outputs = [
        row["reference"] if "\\boxed" in row["reference"] else box
        for row, box in zip(rows, boxed, strict=True)
    ]
    golds = [row["answer"] for row in rows]
    # Each is wrong for the problem after, unless both have the same answer.
    shifted = [*golds[1:], golds[0]]
    verdicts = grade_answers(outputs * 2, golds + shifted)
    right, other = verdicts[: len(rows)], verdicts[len(rows) :]
    assert all(verdict.correct and verdict.string_correct for verdict in right)
    for verdict, gold, next_gold in zip(other, golds, shifted, strict=True):
        assert verdict.string_correct == string_match(gold, next_gold)
        assert verdict.correct >= (gold == next_gold)
    assert sum(verdict.correct for verdict in other) < 0.2 * len(rows)


def test_monsters_cost_only_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "TIME_LIMIT", 1.0)
    monsters = ["9^{9^{9^9}}", "9" * 100_000, "{" * 2**19 + "}" * 2**19]
    answers = ["42", *monsters, r"\frac{84}{2}"]
    begin = time.monotonic()
    verdicts = grade_answers([f"\\boxed{{{answer}}}" for answer in answers], ["42"] * 5)
    assert [verdict.final_answer for verdict in verdicts] == answers
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, True]
    # math-verify gives many digits up, in a time about as long as this limit.
    timed_out = [verdict.timed_out for verdict in verdicts]
    assert timed_out in ([False, True, many, True, False] for many in (False, True))
    # Three pairs at their limit by the clock, and four starts.
    assert time.monotonic() - begin < 3 * workers.WALL_FACTOR + 4 * workers.START_LIMIT


def test_without_a_box_or_a_gold_answer_nothing_is_correct() -> None:
    no_answer = MathVerdict(None, False, False, False)
    assert (
        grade_answers(["It is 5.", "", "\\boxed{5", "\\boxed"], ["5", "", "5", None])
        == [no_answer] * 4
    )
    assert grade_answers(["\\boxed{None}", "\\boxed{ 5 }"], [None, None]) == [
        MathVerdict("None", False, False, False),
        MathVerdict("5", False, False, False),
    ]
    assert grade_answers([], []) == []


def test_blanks_around_answer_and_gold_do_not_count(stand_in: Path) -> None:
    verdicts = grade_answers(["\\boxed{ 5\n}", "\\boxed{}"], ["\t5 ", "5"])
    assert verdicts == [MathVerdict("5", True, True, False), MathVerdict("", False, False, False)]


@pytest.mark.parametrize("num_workers", [1, 20])
def test_a_pair_that_ends_its_worker_costs_only_itself(stand_in: Path, num_workers: int) -> None:
    outcomes = workers.compare([(answer, gold) for answer, gold, _ in FATES], num_workers)
    assert outcomes == [outcome for _, _, outcome in FATES]


def test_a_timeout_is_told_and_wrong_even_for_the_gold_string(stand_in: Path) -> None:
    assert grade_answers(["\\boxed{spin}"], ["spin"]) == [MathVerdict("spin", False, True, True)]


def test_a_worker_ends_with_its_parent(stand_in: Path) -> None:
    lock = stand_in / "lock"
    program = (
        "from t3d.grading import workers; workers.TIME_LIMIT = 0.5;"
        f"workers.compare([('hold {lock}', '')], 1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 60
        while not (lock.exists() and lock.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        parent.kill()
        parent.wait()
    # The kernel gives the lock back when the worker ends.
    with lock.open() as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_no_worker_outlives_a_call(stand_in: Path) -> None:
    lock = stand_in / "lock"
    outcomes = workers.compare([(f"hold {lock}", ""), ("1", "1")], 2)
    assert outcomes == ["timeout", "equal"]
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_worker_that_cannot_start_is_an_error(
    stand_in: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (stand_in / "math_verify.py").write_text("raise ImportError('broken install')")
    with pytest.raises(RuntimeError, match="ended as it started"):
        workers.compare([("1", "1")], 1)
    assert "broken install" in capfd.readouterr().err


def test_users_are_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        grade_answers(["\\boxed{5}"], ["5"], num_workers=0)
    with pytest.raises(ValueError, match="shorter"):
        grade_answers(["\\boxed{5}"], [])
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match="needs math-verify; run `pip install"):
        grade_answers(["\\boxed{5}"], ["5"])


def test_importing_the_grader_needs_neither_torch_nor_math_verify() -> None:
    program = (
        "import sys, t3d.grading.math;"
        "assert not {'torch', 'numpy', 'sympy', 'math_verify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


BALANCED = st.recursive(
    st.text(alphabet=st.sampled_from(r"ab1 $,.+")) | st.sampled_from([r"\{", r"\}", r"\\", r"\!"]),
    lambda inner: st.lists(inner, max_size=3).map("".join) | inner.map(lambda text: f"{{{text}}}"),
    max_leaves=8,
)


@given(BALANCED, st.text(alphabet="ab{}\\\n$ "), st.sampled_from([r"\boxed", r"\fbox"]))
def test_the_last_box_is_read_to_its_own_brace(inner: str, around: str, box: str) -> None:
    assert last_boxed(f"\\boxed{{9}} {around} {box}{{{inner}}}{around}") == inner.strip()
    assert last_boxed(f"\\boxed{{9}} {box} {{{inner}") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$\boxed{1}$ and $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed 5", "5"),
        (r"So $\boxed 5$ it is.", "5"),
        ("\\boxed 12.\nDone", "12"),
        (r"\boxed\frac12", r"\frac12"),
        (r"\boxed{\left\{1,2\right.}", r"\left\{1,2\right."),
        (r"\boxed{a\\{b}}", r"a\\{b}"),
        (r"\boxed{}", ""),
        (r"\boxed", None),
        (r"\boxed $", None),
        (r"\boxedtext{5}", None),
        ("boxed{5}", None),
    ],
)
def test_boxes(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        (r"\frac1{72}", r"\frac{1}{72}", True),
        (r"\tfrac12+\dfrac34", r"\frac{1}{2}+\frac{3}{4}", True),
        (r"\sqrt2+\sqrt{3}", r"\sqrt{2}+\sqrt3", True),
        (r"5\text{ cm}\%", "5", True),
        (r"5\text{cm}", "5", False),
        (r"5\text{ a}\text{ b}", "5", False),
        (r"5\text{ a}\text{ b}", r"5\text{ a}\text{ b}", True),
        (r"\left(.5, .2\right)", "(.5 0.2)", True),
        ("xyz=5", "5", False),
        ("a=b=5", "b=5", False),
        ("07/2", r"\frac{7}{2}", False),
        ("-7/2", r"\frac{-7}{2}", True),
        (r"\frac", r"\frac", True),
        (r"\frac", r"\frac ", False),
        (r"\frac1", r"\tfrac 1", True),
        (r"\sqrt", r"\sqrt{}", False),
        ("", " ", True),
        ("", "0", False),
    ],
)
def test_the_string_rule_on_corners(answer: str, gold: str, equal: bool) -> None:
    assert string_match(answer, gold) is equal


@given(
    st.lists(st.sampled_from(["1", "x", r"\pi", "+", "(", ")", r"\frac{1}{2}", r"\sqrt{3}", "2"])),
    st.lists(st.sampled_from([" ", r"\!", r"\left", r"\right", r"^\circ", "$", ",", "\n", r"\%"])),
    st.integers(0, 8),
)
def test_the_string_rule_does_not_see_what_it_drops(
    tokens: list[str], dropped: list[str], at: int
) -> None:
    plain = "".join(tokens)
    decorated = "".join([*tokens[:at], *dropped, *tokens[at:]])
    assert string_match(decorated, plain)
    assert string_match(plain, decorated)
    assert not string_match(decorated, plain + "y")


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_the_string_rule_compares_numbers_by_value(a: int, b: int) -> None:
    assert string_match(f"{a:,}.0", str(b)) == (a == b)
    assert string_match(f"{a}/{b}", f"\\frac{{{a}}}{{{b}}}")
