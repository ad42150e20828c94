"""Roofline model: rates of a device, costs of a model's passes, and peak memory of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from t3d.decoding.budget import cache_bytes_per_token
from t3d.models import BlockDiffusionLM

_COPY = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Size in bytes of the tensor that is copied to measure bandwidth: far more than any CPU cache
holds."""
_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied to measure arithmetic."""
_TIMES = 4
_CLEAR_REFS = Path("/proc/self/clear_refs")


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, including the work that it queues on a GPU."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Load:
    """What one pass asks of a model, or several passes together."""

    tokens: int = 0
    """Number of tokens that run through the layers."""
    pairs: int = 0
    """Number of pairs of a query and a key that it attends to."""
    logits: int = 0
    """Number of positions whose logits are computed."""
    stored: int = 0
    """Number of tokens whose keys and values are read from the cache."""

    def __add__(self, other: Load) -> Load:
        return Load(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Rates:
    """Rates that a device reached in this run."""

    bytes_per_second: float
    """Memory bandwidth of a large copy, bytes read and written together."""
    flops_per_second: float
    """Arithmetic rate of a large matrix product."""

    def seconds(self, num_bytes: float, flops: float) -> float:
        """The shortest time for a pass: that of memory or arithmetic, whichever is longer."""
        return max(num_bytes / self.bytes_per_second, flops / self.flops_per_second)


def measure_rates(
    device: torch.device,
    dtype: torch.dtype,
    *,
    copy_bytes: int | None = None,
    side: int | None = None,
) -> Rates:
    """The best rates of a few large copies and matrix products, sized for the kind of device."""
    copy_bytes = _COPY[device.type] if copy_bytes is None else copy_bytes
    side = _SIDE[device.type] if side is None else side
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.ones((side, side), dtype=dtype, device=device) for _ in range(2))

    def best(call: Callable[[], object]) -> float:
        call()
        return min(seconds(call, device) for _ in range(_TIMES))

    return Rates(
        2 * copy_bytes / best(lambda: target.copy_(source)),
        2 * side**3 / best(lambda: torch.mm(left, right)),
    )


@dataclass(frozen=True)
class ModelCosts:
    """Sizes of a model that determine the costs of a pass.

    In a mixture of experts, arithmetic counts the experts that a token runs through, and memory
    traffic as many experts of a layer as the tokens of a pass can select.
    """

    body: int
    """Weights that multiply every token: all but embedding, head and experts."""
    experts: int
    active_share: float
    """Share of the experts that one token runs through."""
    head: int
    query_width: int
    """Size of a token's queries, over all heads and layers."""
    cached_token: int
    """Bytes of one token's keys and values in all layers."""
    bytes_per_number: int

    @classmethod
    def of(cls, model: BlockDiffusionLM) -> ModelCosts:
        config, head = model.config, model.get_output_embeddings()
        assert head is not None
        # Tied weights count once.
        outer = {id(p) for p in (model.get_input_embeddings().weight, head.weight)}
        inner = {name: p.numel() for name, p in model.named_parameters() if id(p) not in outer}
        experts = sum(n for name, n in inner.items() if ".experts." in name)
        share = config.num_experts_per_tok / config.num_experts if experts else 1.0
        assert config.head_dim is not None
        return cls(
            body=sum(inner.values()) - experts,
            experts=experts,
            active_share=share,
            head=head.weight.numel(),
            query_width=config.num_hidden_layers * config.num_attention_heads * config.head_dim,
            cached_token=cache_bytes_per_token(model),
            bytes_per_number=model.dtype.itemsize,
        )

    def flops(self, load: Load) -> float:
        """Multiplications and additions of a forward pass.

        2 (body + active experts) tokens + 4 query_width pairs + 2 head logits: of a pair, score and
        weighted sum take 2 operations each for every element.
        """
        active = self.body + self.active_share * self.experts
        attention = 4 * self.query_width * load.pairs
        return 2 * active * load.tokens + attention + 2 * self.head * load.logits

    def num_bytes(self, load: Load) -> float:
        """Bytes that a pass moves: weights, and keys and values that it reads and writes."""
        return self.weight_bytes(load.tokens) + self.cached_token * (load.stored + load.tokens)

    def weight_bytes(self, tokens: int) -> float:
        """Bytes of the weights that a pass of `tokens` tokens reads, each once."""
        read = min(1.0, self.active_share * tokens)
        return self.bytes_per_number * (self.body + self.head + read * self.experts)


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of `peak_bytes`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """The most memory held since `reset_peak`: tensors on a GPU; on a CPU the whole process.

    None where the system does not measure it (macOS).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not _CLEAR_REFS.exists():
        return None
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
