"""`t3d view` and `t3d report --html`, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from t3d.cli.main import main
from t3d.core.store import TrajectoryStore
from t3d.evaluation.evaluate import Evaluation, evaluation_folders
from t3d.models.loading import from_pretrained
from tests.cli.conftest import Run
from tests.report.parsed import Parsed


@pytest.fixture(scope="module")
def evaluation(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The problems of `store` under two settings, by the same model."""
    path = tmp_path_factory.mktemp("evaluations") / "eval"
    settings = (
        "[{denoising_steps: 4, max_new_tokens: 16}, {denoising_steps: 1, max_new_tokens: 16}]"
    )
    command = ["eval", "--model", str(checkpoint), "--output", str(path), "--split", "train"]
    options = ["--num_problems", "12", "--settings", settings, "--progress", "false"]
    assert main([*command, *options]) == 0
    return path


def shown(path: Path) -> dict[str, Any]:
    return json.loads(Parsed(path.read_text(encoding="utf-8")).scripts[0])


def responses(page: dict[str, Any], side: int) -> list[str]:
    found = [problem["responses"][side] for problem in page["problems"]]
    return ["".join(page["texts"][token] for token in one["tokens"]) for one in found]


def test_a_store_is_shown_whole(t3d: Run, store: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "page.html"
    outcome = t3d("view", store, "--output", output)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{output}\n", "")
    page, lm, rows = shown(output), from_pretrained(checkpoint), TrajectoryStore.open(store).read()
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) != "\n"}
    assert responses(page, 0) == [
        "".join(
            lm.text([token]) for token in row.response_ids[: row.num_response_tokens]
        ).translate(pictures)
        for row in rows
    ]
    for problem, row in zip(page["problems"], rows, strict=True):
        # The question stands without the chat template around it.
        assert lm.encode_prompt(problem["question"]) == row.prompt_ids
        [own] = problem["responses"]
        assert own["steps"] == row.step_map[: row.num_response_tokens]
        assert own["log_probs"] == pytest.approx(row.log_probs[: len(own["steps"])], abs=6e-4)
        assert (own["correct"], own["passes"], problem["answer"]) == (None, None, row.answer)


def test_an_evaluation_tells_verdicts_and_passes(
    t3d: Run, evaluation: Path, tmp_path: Path
) -> None:
    assert t3d("view", evaluation, "--output", tmp_path / "x.html").code == 0
    page = shown(tmp_path / "x.html")
    loaded = [Evaluation.load(folder) for folder in evaluation_folders(evaluation)]
    loaded.sort(key=lambda one: one.row.decoding.rank)
    assert len(page["sides"]) == len(loaded) == 2
    for side, one in enumerate(loaded):
        assert one.row.method in page["sides"][side]
        for problem, sample in zip(page["problems"], one.samples, strict=True):
            own = problem["responses"][side]
            assert own["correct"] == sample.grade.correct
            assert own["passes"] == sample.completion.passes.total
    # One setting's folder is an evaluation too.
    assert t3d("view", evaluation_folders(evaluation)[0], "--output", tmp_path / "y.html").code == 0
    assert len(shown(tmp_path / "y.html")["sides"]) == 1


def test_sources_are_matched_by_question(
    t3d: Run, store: Path, evaluation: Path, tmp_path: Path
) -> None:
    assert t3d("view", store, evaluation, "--output", tmp_path / "x.html").code == 0
    page = shown(tmp_path / "x.html")
    trajectories = {row.prompt_id: row for row in TrajectoryStore.open(store).read()}
    samples = Evaluation.load(evaluation_folders(evaluation)[0]).samples
    both = [sample.example_id for sample in samples if sample.example_id in trajectories]
    assert len(page["problems"]) == len(both) > 0
    assert len(page["sides"]) == 3
    for problem, name in zip(page["problems"], both, strict=True):
        assert all(problem["responses"])
        assert problem["answer"] == trajectories[name].answer
    t3d("view", store, store, "--num_problems", 3, "--output", tmp_path / "x.html")
    page = shown(tmp_path / "x.html")
    assert (len(page["sides"]), len(page["problems"])) == (1, 3)


def test_what_cannot_be_viewed_is_refused(
    t3d: Run, store: Path, evaluation: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.html"

    def refused(*call: object) -> str:
        outcome = t3d("view", *call, "--output", output)
        assert outcome.code == 1
        assert not output.exists()
        return outcome.err

    assert "neither a trajectory store nor a finished evaluation" in refused(tmp_path)
    assert "num_problems must be at least 1" in refused(store, "--num_problems", 0)
    moved = tmp_path / "moved"
    shutil.copytree(store, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps(manifest | {"model": str(tmp_path / "gone")}))
    error = refused(moved)
    assert "no such checkpoint directory" in error
    assert "--model" in error
    assert t3d("view", moved, "--model", manifest["model"], "--output", output).code == 0
    output.unlink()
    (tmp_path / "prompts.txt").write_text("Is it so?\n")
    other = tmp_path / "other"
    options = ["--prompts", tmp_path / "prompts.txt", "--decoding.max_new_tokens", 8]
    command = ["rollout", "--model", manifest["model"], "--output", other, *options]
    assert t3d(*command, "--progress", "false").code == 0
    assert "no question in common" in refused(store, other)
    assert "names no file" in t3d("view", store, "--output", tmp_path).err


def test_a_report_in_one_file(t3d: Run, evaluation: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "report.html"
    outcome = t3d("report", evaluation, "--html", output, "--num_examples", 5)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith(f"{output}\n")
    made = Parsed(output.read_text(encoding="utf-8"))
    assert len(shown(output)["problems"]) == 5
    provenance = json.loads((evaluation / "results.json").read_text())["provenance"]
    for fact in (provenance["weights_hash"], str(checkpoint), provenance["platform"]):
        assert fact in made.prose
    [figure] = made.get("img", "src")
    assert (figure or "").startswith("data:image/png;base64,")
    # Without samples beside them the numbers are still worth a report.
    shutil.copy(evaluation / "results.json", tmp_path)
    assert t3d("report", tmp_path / "results.json", "--html", output).code == 0
    assert "Examples" not in output.read_text(encoding="utf-8")
    assert "num_examples" in t3d("report", evaluation, "--num_examples", -1).err
