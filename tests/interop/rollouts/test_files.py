from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.cli.importing import export_rollouts_command, import_command
from t3d.core.store import TrajectoryStore
from t3d.core.trajectory import Trajectory, training_rows
from t3d.decoding.config import DecodingConfig, RolloutConfig
from t3d.decoding.rollout import rollout
from t3d.interop.rollouts.exporting import export_rollouts
from t3d.interop.rollouts.importing import import_rollouts
from t3d.interop.rollouts.rows import Format
from t3d.models import LanguageModel, from_pretrained
from t3d.tasks import get_task
from t3d.training.config import MethodConfig, TrainingConfig
from t3d.training.distill import distill

from .conftest import MakeStore, canonical, jetengine

FORMATS: list[Format] = ["t3d", "dllm-rl"]
SIZE = 4
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant"


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def authors_entry(lm: LanguageModel, question: str, text: str, **keys: Any) -> dict[str, Any]:
    """An entry as sdar_sample.py writes it, of one response."""
    prompt = PROMPT.format(question)
    encode = lm.tokenizer.encode
    steps = jetengine(len(encode(text)), len(encode(prompt)), SIZE, random.Random(0)).step_map
    return {
        "question": question,
        "ground_truth_answer": "7",
        "full_output": [text],
        "step_map": [steps],
        "extracted_output": ["Can not extract the answer!"],
        "response_length": [len(encode(text))],
        "prompt": prompt,
        **keys,
    }


def random_row(lm: LanguageModel, number: int, rng: random.Random, canonical_ids: bool) -> Any:
    """A trajectory of any ids, or of ids that a text gives."""
    encode, num_ids = lm.tokenizer.encode, len(lm.tokenizer)
    alphabet = "abc 012.\n"
    prompt = lm.encode_prompt("".join(rng.choices(alphabet, k=rng.randint(1, 9))))
    if canonical_ids:
        ids = encode("".join(rng.choices(alphabet, k=rng.randint(1, 14))))
    else:
        ids = [rng.randrange(num_ids) for _ in range(rng.randint(1, 12))]
    ids = [t for t in ids if t not in (*lm.stop_token_ids, lm.mask_token_id)] or encode("a")
    stopped = rng.random() < 0.7
    ids += [rng.choice(lm.stop_token_ids)] if stopped else []
    num = len(ids)
    length = num - (len(prompt) + num) % -SIZE
    return Trajectory(
        prompt_id=f"row/{number}",
        prompt_ids=prompt,
        response_ids=ids + [rng.randrange(num_ids) for _ in range(length - num)],
        initial_ids=[rng.randrange(num_ids) for _ in range(length)],
        step_map=[rng.randrange(SIZE) for _ in range(length)],
        log_probs=[-rng.random() for _ in range(length)],
        num_response_tokens=num,
        finish_reason="stop" if stopped else "length",
        block_size=SIZE,
        answer=rng.choice([None, "7"]),
    )


def round_trip(
    lm: LanguageModel, rows: list[Trajectory], make_store: MakeStore, format: Format
) -> tuple[list[Trajectory], set[str]]:
    """What comes back, and the ids of what was left out."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        store = make_store(path / "store", rows)
        out = export_rollouts(store, lm, path / "rollouts.json", format=format)
        back = import_rollouts(
            path / "rollouts.json", lm, path / "again", format=format, block_size=SIZE
        )
        assert back.skipped == [], "what is written can be read"
        again = TrajectoryStore.open(path / "again")
        assert len(again) == again.manifest.num_prompts == out.num_taken == back.num_taken
        return again.read(), {row.prompt_id for row in out.skipped}


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_store_comes_back_where_text_gives_its_ids(
    chars: LanguageModel, make_store: MakeStore, format: Format, seed: int
) -> None:
    rng = random.Random(seed)
    rows = [random_row(chars, i, rng, canonical_ids=i % 2 == 0) for i in range(12)]
    back, skipped = round_trip(chars, rows, make_store, format)
    assert not skipped, "every character is a token"
    assert back == [canonical(row, chars.mask_token_id) for row in rows]
    twice, _ = round_trip(chars, back, make_store, format)
    assert twice == [canonical(row, chars.mask_token_id) for row in back]
    assert [row.decode_order() for row in twice] == [row.decode_order() for row in back]


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_text_would_change_is_left_out_and_nothing_else(
    bpe: LanguageModel, make_store: MakeStore, format: Format, seed: int
) -> None:
    rng = random.Random(seed)
    rows = [random_row(bpe, i, rng, canonical_ids=i % 2 == 0) for i in range(12)]
    back, skipped = round_trip(bpe, rows, make_store, format)
    kept = [row for row in rows if row.prompt_id not in skipped]
    assert back == [canonical(row, bpe.mask_token_id) for row in kept]
    for row in rows:
        ids = row.response_ids[: row.num_response_tokens]
        text = bpe.tokenizer.decode(ids)
        same = bpe.tokenizer.encode(text) == ids and "\ufffd" not in text
        assert same == (row.prompt_id not in skipped)
    assert {row.prompt_id for row in rows[::2]}.isdisjoint(skipped)


def test_every_response_is_taken_or_reported(bpe: LanguageModel, tmp_path: Path) -> None:
    good = authors_entry(bpe, "How many?", "The answer is 7.<|im_end|>")
    steps = good["step_map"][0]
    # Decoded as single letters, where the text gives whole words.
    slipped = good | {"step_map": [list(range(1, 40))]}
    rows = [
        good,
        good | {"full_output": [""], "step_map": [""]},
        good | {"full_output": ["The \ufffd"], "step_map": [[1]]},
        slipped,
        good | {"step_map": [[0, *steps[1:]]]},
        good | {"step_map": [[*steps[:-1], 10**12]]},
        authors_entry(bpe, "How many?", "The <|MASK|> is"),
        good | {"step_map": [[]]},
        authors_entry(bpe, "How <|MASK|>?", "The answer is 7.<|im_end|>"),
        good | {"full_output": [*good["full_output"], ""], "step_map": [steps, ""]},
    ]
    source = write(tmp_path / "SDAR-MATH.json", rows)
    report = import_rollouts(source, bpe, tmp_path / "store", format="t3d", block_size=SIZE)
    store = TrajectoryStore.open(tmp_path / "store")
    taken = store.read()
    assert [row.prompt_id for row in taken] == ["SDAR-MATH/0", "SDAR-MATH/9/0"]
    assert taken[1] == replace(taken[0], prompt_id="SDAR-MATH/9/0")
    reasons = [(row.entry, row.sample, row.reason) for row in report.skipped]
    assert reasons == [
        (1, 0, "lost"),
        (2, 0, "text"),
        (3, 0, "length"),
        (4, 0, "uncommitted"),
        (5, 0, "blocks"),
        (6, 0, "mask"),
        (7, 0, "lost"),
        (8, 0, "prompt"),
        (9, 1, "lost"),
    ]
    assert report.counts["lost"] == 3
    written = json.loads((tmp_path / "store" / "import.json").read_text())
    assert written == asdict(report) | {"counts": report.counts}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SDAR-MATH.json", "store"]
    assert store.manifest.decoding["imported_from"] == "SDAR-MATH.json"
    assert store.manifest.num_prompts == len(store) == 2


def test_the_prompt_is_the_one_that_was_decoded(chars: LanguageModel, tmp_path: Path) -> None:
    """The authors' template engine drops the last newline; their question lacks the suffix."""
    entry = authors_entry(chars, "abc", "7<|im_end|>")
    entry["prompt"] = PROMPT.format("abc\nthink")
    entry["step_map"] = [[1, 2]]
    encode = chars.tokenizer.encode

    def prompt_ids(rows: list[Any], **settings: Any) -> list[int]:
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        source = write(tmp_path / f"{output.name}.json", rows)
        import_rollouts(source, chars, output, format="t3d", block_size=64, **settings)
        return TrajectoryStore.open(output).read()[0].prompt_ids

    assert prompt_ids([entry]) == encode(entry["prompt"])
    bare = {key: value for key, value in entry.items() if key != "prompt"}
    assert prompt_ids([bare]) == chars.encode_prompt("abc")
    assert prompt_ids([bare], prompt_suffix="\nthink") == encode(entry["prompt"] + "\n")
    with pytest.raises(ValueError, match="every entry holds its 'prompt'.*leave out prompt_suffix"):
        prompt_ids([entry], prompt_suffix="\nthink")


def test_the_authors_renamed_key_is_read_and_gold_answers_are_not_responses(
    chars: LanguageModel, tmp_path: Path
) -> None:
    entry = authors_entry(chars, "abc", "7<|im_end|>")
    renamed = entry | {"answer": entry["full_output"]}
    del renamed["full_output"]
    as_text = renamed | {"answer": renamed["answer"][0]}
    source = write(tmp_path / "a.json", [entry | {"answer": "gold"}, renamed, as_text])
    import_rollouts(source, chars, tmp_path / "store", format="t3d", block_size=SIZE)
    rows = TrajectoryStore.open(tmp_path / "store").read()
    assert len({json.dumps(asdict(replace(row, prompt_id=""))) for row in rows}) == 1
    assert len(rows) == 3
    assert rows[0].answer == "7"


LACKS_PROMPT = {"answer": ["7"], "step_map": [[1]]}
WRONG: list[tuple[str, str]] = [
    ("[", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("{}", "must be a JSON list of rollouts"),
    ("[]", "with at least one"),
    ("[3]", "entry 0: not a JSON object"),
    ('[{"response": "a", "step_map": [1]}]', "lacks the key 'answer'.*is it of format t3d"),
    ('[{"answer": ["7"], "prompt": "a"}]', "lacks the key 'step_map'"),
    (json.dumps([LACKS_PROMPT]), "lacks the key 'prompt'"),
    (json.dumps([LACKS_PROMPT | {"prompt": 7}]), "'prompt' must be a text, got 7"),
    (json.dumps([LACKS_PROMPT | {"prompt": "\ud800"}]), "half a character"),
    (json.dumps([LACKS_PROMPT | {"prompt": "a", "answer": {}}]), "must be lists"),
    (json.dumps([LACKS_PROMPT | {"prompt": "a", "answer": [7]}]), "'answer' must be a text"),
    (json.dumps([LACKS_PROMPT | {"prompt": "a", "step_map": []}]), "evaluation keeps no step maps"),
    (json.dumps([LACKS_PROMPT | {"prompt": "a", "step_map": ["x"]}]), "lists of whole numbers"),
    (json.dumps([LACKS_PROMPT | {"prompt": "a", "step_map": [[1.5]]}]), "lists of whole numbers"),
    (json.dumps([LACKS_PROMPT | {"prompt": "a", "step_map": [[True]]}]), "lists of whole numbers"),
    (
        json.dumps([LACKS_PROMPT | {"prompt": "a", "prompt_id": "x"}] * 2),
        "entry 1: the id 'x' is already that of entry 0",
    ),
    (
        json.dumps([LACKS_PROMPT | {"prompt": "a", "answer": [""], "step_map": [[]]}]),
        r"none of 1 responses can be taken \(lost 1\); the first, 'a/0': no response",
    ),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_mistakes_are_named_and_leave_nothing(
    chars: LanguageModel, tmp_path: Path, content: str, message: str
) -> None:
    source = tmp_path / "a.json"
    source.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        import_rollouts(source, chars, tmp_path / "store", format="t3d", block_size=SIZE)
    assert "a.json" in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


def test_outputs_are_never_mixed_or_overwritten(chars: LanguageModel, tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", [authors_entry(chars, "abc", "7<|im_end|>")])

    def run(output: Path) -> None:
        import_rollouts(source, chars, output, format="t3d", block_size=SIZE)

    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty")
    with pytest.raises(ValueError, match="empty: exists already and holds import.json"):
        run(tmp_path / "empty")
    with pytest.raises(ValueError, match="a.json: exists already"):
        run(source)
    with pytest.raises(ValueError, match="no directory can be made there"):
        run(source / "store")
    with pytest.raises(ValueError, match="nowhere.json: cannot be read: No such file"):
        import_rollouts(
            tmp_path / "nowhere.json", chars, tmp_path / "b", format="t3d", block_size=SIZE
        )
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        import_rollouts(source, chars, tmp_path / "b", format="t3d", block_size=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "empty"]


def test_what_the_format_cannot_say_is_not_written(
    chars: LanguageModel, make_store: MakeStore, tmp_path: Path
) -> None:
    rng = random.Random(1)
    row = random_row(chars, 0, rng, canonical_ids=True)
    uncommitted = replace(row, prompt_id="row/1", step_map=[-1, *row.step_map[1:]])
    verbatim = replace(row, prompt_id="row/2", prompt_ids=chars.tokenizer.encode("abc"))
    store = make_store(tmp_path / "store", [row, uncommitted, verbatim])
    report = export_rollouts(store, chars, tmp_path / "a.json", format="t3d")
    assert [(s.entry, s.reason) for s in report.skipped] == [(1, "uncommitted"), (2, "prompt")]
    (entry,) = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert chars.encode_prompt(entry["question"]) == row.prompt_ids
    report = export_rollouts(store, chars, tmp_path / "b.json", format="dllm-rl")
    assert [(s.entry, s.reason) for s in report.skipped] == [(1, "uncommitted")]
    half = make_store(tmp_path / "half", [row])
    object.__setattr__(half.manifest, "num_prompts", 2)
    with pytest.raises(ValueError, match="holds 1 of 2 trajectories"):
        export_rollouts(half, chars, tmp_path / "c.json", format="t3d")


def test_training_on_imported_trajectories(chars: LanguageModel, tmp_path: Path) -> None:
    rows = [authors_entry(chars, "abc"[: 1 + i % 3], f"{i} abc<|im_end|>") for i in range(8)]
    source = write(tmp_path / "a.json", rows)
    import_rollouts(source, chars, tmp_path / "store", format="t3d", block_size=SIZE)
    trajectories = TrajectoryStore.open(tmp_path / "store").read()
    assert any(-1 in row.step_map for row in trajectories)
    training = TrainingConfig(steps=2, batch_size=4, micro_batch_size=2, warmup_steps=0)
    record = distill(
        chars,
        training_rows(trajectories),
        MethodConfig("t3d", learning_rate=1e-3),
        training,
        tmp_path / "student",
        progress=False,
    )
    assert record["optimizer_steps"] == 2


def test_the_commands_carry_a_teachers_rollouts_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = from_pretrained("mini_teacher")
    decoding = DecodingConfig(block_size=4, denoising_steps=2, max_new_tokens=48)
    examples = get_task("mini_gsm").examples("train", 6)
    store = rollout(
        lm, examples, tmp_path / "store", RolloutConfig(decoding, batch_size=6), progress=False
    )
    export_rollouts_command(tmp_path / "store", "mini_teacher", tmp_path / "a.json")
    import_command(tmp_path / "a.json", "mini_teacher", tmp_path / "again")
    assert f"{tmp_path / 'again'}: 6 of 6 trajectories" in capsys.readouterr().out
    again = TrajectoryStore.open(tmp_path / "again").read()
    assert again == [canonical(row, lm.mask_token_id) for row in store.read()]
