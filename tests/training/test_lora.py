"""LoRA: one base for student, reference and teacher; resuming; what is written at the end."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from t3d.core.provenance import hash_weights
from t3d.models import LanguageModel, from_pretrained
from t3d.training.config import LoraSettings, MethodConfig, TrainingConfig
from t3d.training.distill import distill
from t3d.training.lora import TARGETS, Adapter, AdapterWeights, FrozenAdapter
from t3d.training.methods import Method, build_method
from t3d.training.run import fit
from t3d.training.trainer import DiffusionTrainer
from t3d.training.weights import Weights as WholeWeights
from tests.training.test_run import Interrupted, PowerCut

Weights = Callable[[LanguageModel], dict[str, Tensor]]
LORA = LoraSettings(rank=2, alpha=4, dropout=0.1)
SETTINGS = TrainingConfig(
    steps=4,
    batch_size=8,
    micro_batch_size=4,
    learning_rate=3e-2,
    warmup_steps=0,
    logging_steps=1,
    lora=LORA,
)
T3D = build_method(MethodConfig("t3d", objective={"fake": "sample"}, reference_every=2))
CDLM = build_method(MethodConfig("cdlm"))


def trainer_of(
    lm: LanguageModel, method: Method, rows: Any, directory: Path, **changes: Any
) -> DiffusionTrainer:
    settings = replace(SETTINGS, **changes)
    return DiffusionTrainer(lm, method, rows, settings, directory)


def logits(lm: LanguageModel) -> Tensor:
    ids = torch.arange(24)[None] * 7 % 200
    with torch.no_grad():
        return lm.model(ids).logits


def randomised(lm: LanguageModel, settings: LoraSettings = LORA) -> Adapter:
    """An adapter as if it were trained: B is not zero."""
    adapter = Adapter(lm, settings, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in adapter.weights.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return adapter


@pytest.mark.parametrize("method", [T3D, CDLM], ids=["reference", "teacher"])
def test_the_shared_base_equals_a_separate_frozen_copy(bench: Any, tmp_path: Path, method: Method):
    """Losses and weights to the last bit, in float32, over rounds of the reference."""
    results, losses = [], []
    for separate in (False, True):
        lm = bench.model(dtype=torch.float32)
        trainer = trainer_of(lm, method, bench.rows(19), tmp_path / str(separate))
        frozen = copy.deepcopy(lm.model).requires_grad_(False).eval()
        if separate and method is T3D:
            trainer.reference = frozen
            trainer.weights.refresh = partial(WholeWeights.refresh, trainer.weights)
        elif separate:
            trainer.teacher = frozen
        trainer.train()
        results.append({k: v.detach() for k, v in adapter_of(trainer).weights.items()})
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == losses[1]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(value.abs().max() > 1e-2 for name, value in results[0].items() if "lora_B" in name)


def adapter_of(trainer: DiffusionTrainer) -> Adapter:
    assert isinstance(trainer.weights, AdapterWeights)
    return trainer.weights.adapter


class Gradients(TrainerCallback):
    """Names of the weights that have a gradient when the optimizer steps."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.names.append({name for name, weight in named if weight.grad is not None})


def test_only_the_adapter_is_trained(bench: Any, weights: Weights, tmp_path: Path):
    lm, gradients = bench.model(), Gradients()
    before = weights(lm)
    trainer = trainer_of(lm, T3D, bench.rows(19), tmp_path)
    trainer.add_callback(gradients)
    trainer.train()
    optimizer: Any = trainer.optimizer
    names = set(adapter_of(trainer).weights)
    assert len(names) == 2 * 2 * len(TARGETS)
    assert gradients.names == [names] * SETTINGS.steps
    held = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert {id(weight) for weight in held} == {id(w) for w in adapter_of(trainer).weights.values()}
    after = {k.replace(".base_layer", ""): v for k, v in weights(lm).items() if k not in names}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert set(after) == set(before)


def test_recomputed_activations_change_nothing(bench: Any, weights: Weights, tmp_path: Path):
    """A layer is run again in the backward pass, when the reference has used it meanwhile."""
    results, calls = [], {False: 0, True: 0}
    for recompute in calls:

        def count(*_: object, recompute: bool = recompute) -> None:
            calls[recompute] += 1

        lm = bench.model()
        trainer = trainer_of(
            lm,
            T3D,
            bench.rows(8),
            tmp_path / str(recompute),
            steps=3,
            activation_checkpointing=recompute,
        )
        lm.model.get_submodule("model.layers.0.mlp.up_proj").register_forward_hook(count)
        trainer.train()
        results.append(weights(lm))
    # Two micro-batches a step, of student, reference, and once more the student.
    assert calls == {False: 3 * 2 * 2, True: 3 * 2 * 3}
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["sdar", "llama", "qwen2", "sdar_moe"])
def test_merged_is_unmerged(bench: Any, weights: Weights, tmp_path: Path, family: str):
    lm, base = (bench.model(dtype=torch.float32, family=family) for _ in range(2))
    names = set(weights(lm))
    start = logits(lm)
    Adapter(base, LORA, seed=0)
    assert torch.equal(logits(base), start)
    adapter = randomised(lm)
    unmerged = logits(lm)
    assert (unmerged - start).abs().max() > 0.1
    lm.model.config.mask_token_id = lm.mask_token_id
    adapter.save_merged(lm, tmp_path / "early")
    assert torch.equal(logits(lm), unmerged)
    adapter.merge()
    lm.save(tmp_path / "late")
    assert set(weights(lm)) == names
    assert all(weight.requires_grad for weight in lm.model.parameters())
    assert hash_weights(tmp_path / "early") == hash_weights(tmp_path / "late")
    loaded = from_pretrained(tmp_path / "early")
    for merged in (lm, loaded):
        torch.testing.assert_close(logits(merged), unmerged, rtol=0, atol=1e-5)


# peft asks transformers for a name that is deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_reads_the_adapter(bench: Any, tmp_path: Path):
    from peft import PeftModel

    lm, base = bench.model(dtype=torch.float32), bench.model(dtype=torch.float32)
    adapter = randomised(lm)
    adapter.save(tmp_path)
    read = PeftModel.from_pretrained(base.model, str(tmp_path))
    ids = torch.arange(24)[None] * 7 % 200
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, logits(lm), rtol=0, atol=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one(bench: Any, weights: Weights, tmp_path: Path):
    """Cut in the second micro-batch of steps 2 and 4: the reference is the base, then a copy."""
    settings = replace(SETTINGS, steps=5, save_seconds=0)
    rows, whole, resumed, finished = bench.rows(19), bench.model(), bench.model(), bench.model()
    fit(whole, T3D, rows, settings, tmp_path / "whole", progress=False)
    references = []
    for step, call in ((1, 2 * 1 + 1), (3, 2 * 2 + 1)):
        cut = replace(T3D, noiser=Interrupted(T3D.noiser, call))
        with pytest.raises(PowerCut):
            fit(bench.model(), cut, rows, settings, tmp_path / "cut", progress=False)
        last = tmp_path / "cut" / f"checkpoint-{step}"
        assert not (last / "model.safetensors").exists()
        assert len(load_file(last / "adapter_model.safetensors")) == 2 * 2 * len(TARGETS)
        references.append(load_file(last / "reference.safetensors"))
    assert [len(reference) for reference in references] == [0, 2 * 2 * len(TARGETS)]
    expected = weights(whole)
    # The second time, nothing is left to train.
    for lm in (resumed, finished):
        fit(lm, T3D, rows, settings, tmp_path / "cut", progress=False)
        assert all(torch.equal(value, expected[name]) for name, value in weights(lm).items())
    start = weights(bench.model())
    assert any((expected[name] - start[name]).abs().max() > 1e-2 for name in start)


def test_the_reference_is_the_base_until_its_first_round(bench: Any, tmp_path: Path):
    lm = bench.model()
    start = logits(lm)
    adapter = randomised(lm)
    student = logits(lm)
    frozen = FrozenAdapter(adapter)
    ids = torch.arange(24)[None] * 7 % 200
    assert torch.equal(frozen(input_ids=ids).logits, start)
    frozen.save(tmp_path / "base.safetensors")
    frozen.refresh()
    frozen.save(tmp_path / "copy.safetensors")
    with torch.no_grad():
        for weight in adapter.weights.values():
            weight.add_(1)
    assert torch.equal(frozen(input_ids=ids).logits, student)
    for name, expected in (("base", start), ("copy", student)):
        frozen.load(tmp_path / f"{name}.safetensors")
        assert torch.equal(frozen(input_ids=ids).logits, expected)
    assert not torch.equal(logits(lm), student)
    assert all(weight.requires_grad for weight in adapter.weights.values())


def live_bytes() -> int:
    """Bytes of all tensors that the process holds, storages counted once."""
    gc.collect()
    # By type: what earlier tests left of a compiler's tensors has no memory to look at.
    found = [
        o
        for o in gc.get_objects()
        if type(o) in (torch.Tensor, nn.Parameter) and not torch._C._functorch.is_batchedtensor(o)  # type: ignore[attr-defined]
    ]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values()
    )


@pytest.mark.parametrize("lora", [LoraSettings(rank=1), None], ids=["lora", "full"])
def test_there_is_no_second_copy_of_the_base(bench: Any, tmp_path: Path, lora: LoraSettings | None):
    """Beside the base: adapter, its two moments, the reference's copy of it."""
    lm = bench.model(hidden_size=64, intermediate_size=256)
    base = sum(weight.nbytes for weight in lm.model.parameters())
    before = live_bytes()
    trainer = trainer_of(lm, T3D, bench.rows(8), tmp_path, lora=lora, steps=2)
    trainer.train()
    lm.model.zero_grad()
    grown = live_bytes() - before
    if lora is None:
        # The reference and two moments: the count sees them all.
        assert 3 * base <= grown < 3 * base + 20_000
    else:
        small = sum(weight.nbytes for weight in adapter_of(trainer).weights.values())
        assert 4 * small <= grown < 4 * small + 20_000 < base / 4


def test_distill_writes_a_plain_checkpoint_and_the_adapter(
    bench: Any, weights: Weights, tmp_path: Path
):
    lm, base = bench.model(dtype=torch.float32), bench.model(dtype=torch.float32)
    lm.model.config.mask_token_id = lm.mask_token_id
    settings = replace(SETTINGS, block_sizes=[4])
    method = MethodConfig("t3d", reference_every=2, learning_rate=1e-2)
    record = distill(lm, bench.rows(8), method, settings, tmp_path / "student", progress=False)
    assert record["config"]["training"]["lora"]["rank"] == LORA.rank
    assert record["weights_hash"] == hash_weights(tmp_path / "student")
    loaded = from_pretrained(tmp_path / "student")
    assert all(torch.equal(weights(loaded)[name], value) for name, value in weights(lm).items())
    adapter = Adapter(base, LORA, seed=1)
    adapter.load(tmp_path / "student" / "adapter")
    torch.testing.assert_close(logits(base), logits(loaded), rtol=0, atol=1e-5)


def test_a_base_in_half_precision_has_an_adapter_in_single(bench: Any):
    lm = bench.model(dtype=torch.bfloat16)
    adapter = randomised(lm)
    assert {weight.dtype for weight in adapter.weights.values()} == {torch.float32}
    assert logits(lm).dtype == torch.bfloat16
    adapter.merge()
    assert {weight.dtype for weight in lm.model.parameters()} == {torch.bfloat16}


def test_in_bfloat16_a_fresh_reference_equals_the_student(bench: Any, tmp_path: Path):
    """Weights that autocast has cast for the one are not taken for the other."""
    lm, lora = bench.model(dtype=torch.float32), replace(LORA, dropout=0.0)
    method = build_method(MethodConfig("t3d", reference_every=2))
    settings = {"lora": lora, "dtype": "bfloat16", "trainer": {"use_cpu": True}}
    trainer = trainer_of(lm, method, bench.rows(8), tmp_path, **settings)
    trainer.train()
    margins = [row["real_margin"] for row in trainer.state.log_history if "real_margin" in row]
    assert [margin == 0 for margin in margins] == [True, False, True, False]


def test_the_seed_draws_the_adapter(bench: Any):
    state = torch.random.get_rng_state()
    drawn = [Adapter(bench.model(), LORA, seed).weights for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in (name for name in drawn[0] if "lora_A" in name):
        assert torch.equal(drawn[0][name], drawn[1][name])
        assert not torch.equal(drawn[0][name], drawn[2][name])


@pytest.mark.parametrize("name", ["lm_head", "query"])
def test_a_layer_that_cannot_be_adapted_is_named(bench: Any, name: str):
    lm = bench.model()
    settings = LoraSettings(target_modules=["q_proj", name])
    with pytest.raises(ValueError, match=f"target_modules: tiny has no linear layer '{name}'.*up_"):
        Adapter(lm, settings, seed=0)
    assert not any("lora" in name for name, _ in lm.model.named_parameters())


def test_chosen_layers_alone_are_adapted(bench: Any):
    adapter = Adapter(bench.model(), LoraSettings(target_modules=["v_proj"]), seed=0)
    assert len(adapter.weights) == 2 * 2
    assert all(".v_proj.lora_" in name for name in adapter.weights)


def test_an_adapter_of_another_rank_is_refused(bench: Any, tmp_path: Path):
    Adapter(bench.model(), LORA, seed=0).save(tmp_path)
    other = Adapter(bench.model(), replace(LORA, rank=3), seed=0)
    with pytest.raises(
        ValueError, match=r"model.safetensors: an adapter .* another rank .*restore"
    ):
        other.load(tmp_path)


def test_without_peft_the_extra_is_named(bench: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 't3d\[lora\]'"):
        Adapter(bench.model(), LORA, seed=0)


@pytest.mark.parametrize(
    "change", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"target_modules": []}]
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]):
    with pytest.raises(ValueError, match=f"lora: {next(iter(change))}"):
        LoraSettings(**change)
