"""Two other ways to full-step quality in few passes, beside verified decoding.

python -m benchmarks.resampling mini_teacher runs/mini_compare/checkpoints/rtd/seed0

EDLM (arXiv:2410.21357): k candidates of what a step commits are drawn from the factorised
prediction q at temperature 1, and one of them is picked by importance weights p ** (1 / 0.1) / q.
The energy is the model's own: p multiplies the probabilities of the tokens decoded one after the
other, all of which one pass gives. k = 1 is a step without it, at temperature 0.1.

S2D2 (arXiv:2603.25702): a block is drafted in one pass and verified left to right by the same model
with blocks of one token. Greedy, so its output is that of blocks of one token; counted are passes.

Both run without a cache; passes count, not time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import t3d
from t3d.core.blocks import BlockLayout
from t3d.core.files import write_json
from t3d.core.provenance import package_versions
from t3d.decoding.sampling import allowed_log_probs
from t3d.evaluation.metrics import wilson_interval
from t3d.models import LanguageModel
from t3d.models.attention import dense_mask

MAX_NEW_TOKENS = 96
TEMPERATURE = 0.1


def log_probs(lm: LanguageModel, rows: list[list[int]], block_size: int) -> Tensor:
    """Log-probabilities [B, L, V] of rows of one length, each under the mask of block diffusion."""
    length = len(rows[0])
    grid = BlockLayout(block_size).clean(torch.tensor([length]), length)
    mask = dense_mask(grid, grid).expand(len(rows), -1, -1, -1)
    logits = lm.model(torch.tensor(rows), mask).logits
    banned = torch.tensor([lm.mask_token_id, *lm.banned_token_ids])
    return allowed_log_probs(logits, banned)


class Response:
    """Prompt and response so far, in whole blocks; counts passes."""

    def __init__(self, lm: LanguageModel, prompt: list[int], block_size: int) -> None:
        self.lm, self.size = lm, block_size
        self.ids, self.prompt_length = list(prompt), len(prompt)
        self.passes = 0

    def new_block(self) -> list[int]:
        """Fill the last block up with mask tokens; the positions that are masked."""
        start = len(self.ids)
        end = BlockLayout(self.size).ceil(start + 1)
        self.ids += [self.lm.mask_token_id] * (end - start)
        return list(range(start, end))

    def predict(self) -> Tensor:
        self.passes += 1
        return log_probs(self.lm, [self.ids], self.size)[0]

    def is_done(self) -> bool:
        response = self.ids[self.prompt_length :]
        return len(response) >= MAX_NEW_TOKENS or any(t in self.lm.stop_token_ids for t in response)

    def text(self) -> tuple[str, int]:
        """The response up to its stop token, and the number of its tokens with that."""
        response = self.ids[self.prompt_length :]
        stops = [i for i, token in enumerate(response) if token in self.lm.stop_token_ids]
        kept = response[: stops[0] + 1 if stops else MAX_NEW_TOKENS]
        return self.lm.decode(kept), len(kept)


def resample(
    response: Response, positions: list[int], found: Tensor, k: int, generator: torch.Generator
) -> list[int]:
    """Draw k candidates at `positions` from the prediction [L, V]; pick one by its energy."""
    own = found[positions]
    draws = own.exp().multinomial(k, replacement=True, generator=generator)  # [P, k]
    proposed = own.gather(1, draws).sum(0)  # [k]
    rows = []
    for candidate in draws.T.tolist():
        row = list(response.ids)
        for position, token in zip(positions, candidate, strict=True):
            rows.append(list(row))
            row[position] = token
    response.passes += 1
    at = torch.tensor(positions).repeat(k)
    conditional = log_probs(response.lm, rows, response.size)[torch.arange(len(rows)), at]
    joint = conditional.gather(1, draws.T.flatten()[:, None]).view(k, -1).sum(1)
    weights = (joint / TEMPERATURE - proposed).softmax(0)
    return draws[:, int(weights.multinomial(1, generator=generator))].tolist()


def edlm(
    lm: LanguageModel, prompt: list[int], size: int, steps: int, k: int, seed: int
) -> Response:
    """Decode with `steps` steps a block and k candidates a step."""
    generator = torch.Generator().manual_seed(seed)
    response = Response(lm, prompt, size)
    while not response.is_done():
        masked = response.new_block()
        quota = -(-size // steps)
        while masked:
            found = response.predict()
            sure = found[masked].amax(-1).argsort(descending=True, stable=True)[:quota]
            positions = sorted(masked[i] for i in sure.tolist())
            if k == 1:
                sharp = (found[positions] / TEMPERATURE).softmax(-1)
                tokens = sharp.multinomial(1, generator=generator)[:, 0].tolist()
            else:
                tokens = resample(response, positions, found, k, generator)
            for position, token in zip(positions, tokens, strict=True):
                response.ids[position] = token
            masked = [position for position in masked if position not in positions]
    return response


def s2d2(lm: LanguageModel, prompt: list[int], size: int) -> Response:
    """Draft `size` tokens in one pass, keep those that blocks of one token agree with, greedily."""
    response = Response(lm, prompt, size)
    while not response.is_done():
        known = len(response.ids)
        masked = response.new_block()
        draft = response.predict()[masked].argmax(-1).tolist()
        # One pass gives what blocks of one token predict after each prefix of the draft; here
        # its states are rows, each with one masked token at its end.
        response.passes += 1
        kept = response.ids[:known]
        for token in draft:
            rows = [[*kept, lm.mask_token_id]]
            kept.append(int(log_probs(lm, rows, 1)[0, -1].argmax()))
            if kept[-1] != token:
                break
        response.ids = kept
    return response


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--task", default="mini_gsm")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    task = t3d.get_task(asked.task)
    problems = task.examples("test", asked.problems)
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        lm = t3d.from_pretrained(name)
        prompts = lm.encode_examples(problems)
        for size in (4, 8):
            for kind, steps, k in [("EDLM", s, k) for s in (1, 2) for k in (1, 4, 16)] + [
                ("S2D2", 0, 0)
            ]:
                done = [
                    edlm(lm, prompt, size, steps, k, seed) if k else s2d2(lm, prompt, size)
                    for seed, prompt in enumerate(prompts)
                ]
                texts = [response.text() for response in done]
                grades = task.grade(problems, [text for text, _ in texts])
                correct = sum(grade.correct for grade in grades)
                tokens, passes = sum(n for _, n in texts), sum(r.passes for r in done)
                row = {"model": name, "block_size": size, "kind": kind, "steps": steps, "k": k}
                row |= {"accuracy": correct / len(done), "n": len(done)}
                row |= {"ci95": wilson_interval(correct, len(done))}
                row |= {"tokens_per_pass": tokens / passes}
                rows.append(row)
                print(row, file=sys.stderr)
                document = {"task": asked.task, "packages": package_versions(), "rows": rows}
                write_json(asked.output, document)


if __name__ == "__main__":
    main()
