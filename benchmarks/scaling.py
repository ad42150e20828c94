"""How the cost of decoding grows with batch, length and block size: `python -m benchmarks.scaling`.

Processor time of the first pass, which runs the prompts, and of a denoising pass after it, one
thread, random weights. Linear growth is a line of slope 1. Writes benchmarks/scaling.json and .png.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from t3d.bench.config import DecodeSettings
from t3d.bench.decode import random_requests
from t3d.bench.subject import random_model
from t3d.bench.tables import head
from t3d.core.files import write_json
from t3d.decoding.engine import BlockDecoder
from t3d.models import LanguageModel
from t3d.report.figure import INK, SOFT, save

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}
REPEATS = 3


@dataclass(frozen=True)
class Setting:
    batch_size: int = 16
    prompt_tokens: int = 128
    block_size: int = 4
    num_blocks: int = 8


SWEEPS = {
    "batch_size": [replace(Setting(), batch_size=2**i) for i in range(9)],
    "prompt_tokens": [replace(Setting(), prompt_tokens=2**i) for i in range(7, 13)],
    "block_size": [replace(Setting(), block_size=2**i) for i in range(2, 6)],
}
LABELS = {
    "batch_size": "requests in a batch",
    "prompt_tokens": "tokens of a prompt",
    "block_size": "tokens of a block",
}


def measure(lm: LanguageModel, setting: Setting) -> tuple[float, float]:
    """Seconds of the first pass, and of one of the others by the median."""
    num, length = setting.batch_size, setting.prompt_tokens
    settings = DecodeSettings(
        block_size=setting.block_size,
        prompt_tokens=(length, length),
        new_tokens=setting.block_size * setting.num_blocks,
    )
    decoder = BlockDecoder(
        lm.model,
        settings.decoding(1),
        mask_token_id=lm.mask_token_id,
        stop_token_ids=(),
        batch_size=num,
        prefill_chunk=num * length,
    )
    for request in random_requests(lm, settings, num):
        decoder.submit(request)
    seconds = []
    while decoder.num_unfinished:
        began = time.process_time()
        decoder.step()
        seconds.append(time.process_time() - began)
    assert len(seconds) == setting.num_blocks
    return seconds[0], statistics.median(seconds[1:])


def draw(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 3, sharey=True), LABELS.items(), strict=True):
        own = [row for row in rows if row["sweep"] == name]
        sizes = [row[name] for row in own]
        for key, colour, text in (
            ("first_pass_s", SOFT, "first pass (prompts)"),
            ("pass_s", INK, "a denoising pass"),
        ):
            times = [row[key] for row in own]
            axes.loglog(sizes, times, "o-", color=colour, label=text)
            linear = [times[-1] * size / sizes[-1] for size in sizes]
            axes.loglog(sizes, linear, ":", color=colour, label="linear in its last point")
        axes.set_xlabel(label)
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("processor time (s)")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    torch.set_num_threads(1)
    lm = random_model(SHAPE, torch.device("cpu"), "float32")
    times: dict[tuple[str, Setting], list[tuple[float, float]]] = {}
    measure(lm, Setting())
    for _ in range(REPEATS):
        for name, settings in SWEEPS.items():
            for setting in settings:
                times.setdefault((name, setting), []).append(measure(lm, setting))
                print(name, setting, times[name, setting][-1], file=sys.stderr)
    rows = []
    for (name, setting), own in times.items():
        first, later = map(statistics.median, zip(*own, strict=True))
        rows.append({"sweep": name, **asdict(setting), "first_pass_s": first, "pass_s": later})
    target = Path(__file__).with_suffix(".json")
    write_json(target, {**head(), "model": SHAPE, "repeats": REPEATS, "rows": rows})
    save(draw(rows), target.with_suffix(".png"))


if __name__ == "__main__":
    main()
