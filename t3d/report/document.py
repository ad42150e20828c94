"""The results of runs as one HTML file: tables, frontier, training, examples and provenance."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from t3d.core.files import read_object, write_bytes
from t3d.evaluation.frontier import frontier
from t3d.evaluation.results import ResultRow, load_provenance
from t3d.report.figure import TrainingLog, frontier_figure, png, training_figure
from t3d.report.frontier import frontier_sections, panels
from t3d.report.page import page, part
from t3d.report.sheets import render_html
from t3d.report.tables import result_sections


def write_document(
    path: Path, rows: Sequence[ResultRow], results: Sequence[Path], *, num_examples: int
) -> None:
    """Write one self-contained file, atomically.

    Args:
        rows: the results of all runs.
        results: the results.json of each; the first one with samples beside it gives the examples.
        num_examples: problems whose decoding is shown, for each setting.

    Raises:
        ValueError: as `result_sections` does, and for a results.json that is damaged.
    """
    found, runs = frontier(rows), [file.parent for file in results]
    title = f"Results of {', '.join(run.name for run in runs)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        render_html(result_sections(rows)),
        "<h2>Frontier</h2>",
        _image(
            frontier_figure(panels(found.points)),
            "Accuracy against decoding speed, as in the tables",
        ),
        render_html(frontier_sections(found)).replace("h3>", "h4>").replace("h2>", "h3>"),
    ]
    if logs := list(training_logs(runs, rows)):
        note = "Losses of different methods are different quantities: compare their course alone."
        picture = _image(training_figure(logs), "Metrics while training")
        parts += ["<h2>Training</h2>", picture, f'<p class="soft">{note}</p>']
    data = _examples(runs, num_examples)
    if data is not None:
        parts += ["<h2>Examples</h2>", part("trajectories.html")]
    parts.append("<h2>Provenance</h2>")
    parts += (_provenance(file, load_provenance(file)) for file in results)
    scripts = [] if data is None else [part("trajectories.js")]
    write_bytes(path, page(title, "\n".join(parts), scripts, data=data).html.encode())


def training_logs(runs: Iterable[Path], rows: Iterable[ResultRow]) -> Iterator[TrainingLog]:
    """The logs of the runs' students, and of other checkpoints that rows name, where they are."""
    found: dict[Path, str] = {}
    for run in runs:
        for path in sorted(run.glob("checkpoints/**/provenance.json")):
            home = path.parent
            found.setdefault(home.resolve(), home.relative_to(run / "checkpoints").as_posix())
    for row in rows:
        if (Path(row.model) / "provenance.json").is_file():
            found.setdefault(Path(row.model).resolve(), row.method)
    for home, name in found.items():
        # Earlier versions kept no log.
        if log := read_object(home / "provenance.json").get("log"):
            yield name, log


def _examples(runs: Sequence[Path], num_examples: int) -> dict[str, Any] | None:
    """The decoded problems of the first run that has some; None where the report shows none."""
    # They need torch, which the rest of a report does without.
    from t3d.evaluation.evaluate import evaluation_folders
    from t3d.report.sources import read_problems
    from t3d.report.trajectories import trajectory_data

    run = next((run for run in runs if evaluation_folders(run)), None)
    if run is None or num_examples == 0:
        return None
    try:
        return trajectory_data(read_problems([run], num_problems=num_examples))
    except ValueError as error:
        # The numbers are worth a report where a checkpoint, and with it the tokenizer, has moved.
        print(f"t3d: the report has no examples: {error}", file=sys.stderr)
        return None


def _image(figure: Figure, name: str) -> str:
    data = base64.b64encode(png(figure)).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'


def _provenance(file: Path, record: Mapping[str, Any]) -> str:
    facts = {
        "model": record.get("model"),
        "SHA-256 of its weights": record.get("weights_hash"),
        "seed": record.get("seed"),
        "platform": record.get("platform"),
        "packages": ", ".join(f"{k} {v}" for k, v in record.get("packages", {}).items()),
    }
    lines = "".join(f"<dt>{k}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    config = escape(json.dumps(record.get("config"), indent=1))
    return (
        f"<h3>{escape(str(file))}</h3><dl>{lines}</dl>"
        f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
    )
