"""The one trainer: transformers.Trainer with a noiser, an objective and frozen models."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from t3d.core.blocks import BlockLayout
from t3d.core.files import write_json
from t3d.core.rng import derive_key, fold
from t3d.core.shards import read_object
from t3d.core.trajectory import TrajectoryBatch
from t3d.models import BlockDiffusionLM, LanguageModel
from t3d.noising import Vocabulary
from t3d.objectives import Context, Predictions
from t3d.training import sharding as shards
from t3d.training.config import Attention, LoraSettings, OptimizerName, Sharding
from t3d.training.data import SortedBatchSampler
from t3d.training.forward import ModelInputs, assemble, attending
from t3d.training.lora import Adapter, FrozenAdapter
from t3d.training.methods import Method
from t3d.training.muon import muon

REFERENCE_FILE = "reference.safetensors"
SCHEDULE_FILE = "schedule.json"
"""Of a checkpoint in shards: where the learning rate is on its way."""
ADAPTER_DIRECTORY = "adapter"
_VIEW, _SAMPLE = range(2)


class DiffusionTrainer(Trainer):
    """Trains a block-diffusion model by one method.

    Noise is a function of (seed, optimizer step, sequence): fresh at every visit unless the
    method freezes it, and the same for any micro-batching or resumption.
    """

    def __init__(
        self,
        lm: LanguageModel,
        method: Method,
        rows: Sequence[dict[str, Any]],
        arguments: TrainingArguments,
        block_sizes: list[int],
        teacher: LanguageModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        lora: LoraSettings | None = None,
        optimizer: OptimizerName = "adamw",
        attention: Attention = "auto",
        sharding: Sharding = "none",
    ) -> None:
        self.lm = lm
        self.sharding: Sharding = sharding
        self.attention: Attention = attention
        self.adapter = None if lora is None else Adapter(lm, lora, arguments.seed)
        super().__init__(
            model=lm.model,
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=lambda rows: TrajectoryBatch.collate(rows, lm.pad_token_id).as_dict(),
            processing_class=lm.tokenizer,
            callbacks=callbacks,
            optimizers=(muon(lm.model, arguments) if optimizer == "muon" else None, None),
        )
        # It would print every log.
        self.remove_callback(PrinterCallback)
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is not None and plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO-3 splits the head, which t3d applies outside the forward pass; "
                "use t3d/recipes/accelerate/zero2.yaml, or training.sharding full without DeepSpeed"
            )
        # The loss is divided by the sequences of the whole accumulation window, below.
        self.model_accepts_loss_kwargs = True
        self.method = method
        self.vocabulary = Vocabulary(
            lm.model.config.vocab_size, lm.mask_token_id, lm.banned_token_ids
        )
        grows = method.block_schedule == "growing"
        self.layouts = [
            BlockLayout(size) for size in (sorted(block_sizes) if grows else block_sizes)
        ]
        self.reference: nn.Module | None = None
        self.teacher: nn.Module | None = None
        # Batches of whole optimizer steps, so that nothing depends on micro-batches.
        self._sampler = SortedBatchSampler(
            [len(row["input_ids"]) for row in rows],
            self.get_total_train_batch_size(arguments),
            seed=arguments.data_seed or arguments.seed,
        )
        self._metrics: dict[str, list[Tensor]] = {}
        # A process that runs alone has nobody to share with; its checkpoints are as those of many.
        sharded = sharding == "full" and dist.is_initialized()
        # Copies are made and split on the CPU, since no device needs to hold them whole.
        device = torch.device("cpu") if sharded else arguments.device
        nn.Module.to(lm.model, device)
        if method.objective.needs_reference:
            self.reference = self._frozen_copy()
            self.add_callback(_ReferenceRounds(self))
        if method.objective.needs_teacher:
            frozen = self._frozen_copy() if teacher is None else teacher.model
            self.teacher = nn.Module.to(frozen, device).eval()
        if sharded:
            dtype = torch.bfloat16 if arguments.bf16 else None
            for model in (lm.model, self.reference, self.teacher):
                if model is not None:
                    assert isinstance(model, BlockDiffusionLM)
                    shards.shard(model, arguments.device, dtype)
            # accelerate leaves what it takes for its own work as it is.
            lm.model._is_accelerate_prepared = True  # type: ignore[assignment]

    def _frozen_copy(self) -> nn.Module:
        """The model as training starts."""
        if self.adapter is not None:
            return FrozenAdapter(self.adapter)
        return copy.deepcopy(self.lm.model).requires_grad_(False).eval()

    def refresh_reference(self) -> None:
        """Start a reference round: the reference becomes a frozen copy of the student."""
        assert self.reference is not None
        if isinstance(self.reference, FrozenAdapter):
            self.reference.refresh()
            return
        # Of a model in shards, each process copies its own.
        self.reference.load_state_dict(self.accelerator.unwrap_model(self.model).state_dict())

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedBatchSampler:
        return self._sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The accumulation window and the number of its sequences."""
        # accelerate forgets the epoch where it skips the batches that a resumed run has seen.
        self._sampler.set_epoch(self.state.global_step // self._sampler.num_batches)
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, torch.tensor(sum(len(b["input_ids"]) for b in batches), device=device)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward, which recomputes what checkpointing dropped, attend alike."""
        models = [self.lm.model, self.reference, self.teacher]
        with attending([m for m in models if isinstance(m, PreTrainedModel)], self.attention):
            loss = super().training_step(*args, **kwargs)
        for frozen in (self.reference, self.teacher):
            if isinstance(frozen, FSDPModule):
                # No backward pass has done so.
                frozen.reshard()
        return loss

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The window's share of the mean loss over its sequences."""
        assert not return_outputs
        assert num_items_in_batch is not None
        batch = TrajectoryBatch(**inputs)
        step = self.state.global_step
        progress = step / self.args.max_steps
        seed = torch.tensor(derive_key(self.args.seed, "noise"), device=batch.index.device)
        keys = fold(seed, step, batch.index) if self.method.fresh_noise else fold(seed, batch.index)
        layout = self._layout(step, progress)
        views = self.method.noiser(batch, layout, fold(keys, _VIEW), self.vocabulary, progress)
        config = self.accelerator.unwrap_model(model).config
        packed, tokens = assemble(batch, views, layout, config._attn_implementation, torch.float32)

        def predictions(other: nn.Module | None) -> Callable[[], Predictions] | None:
            return None if other is None else lambda: self._predictions(other, packed)

        own = fold(keys, _SAMPLE)[tokens.sequence]
        context = Context(
            tokens,
            student=lambda: self._predictions(model, packed),
            reference=predictions(self.reference),
            teacher=predictions(self.teacher),
            sample_keys=fold(own, tokens.view + 1, tokens.position),
        )
        loss, metrics = self.method.objective(context)
        if not loss.isfinite().all():
            raise ValueError(
                f"the loss at optimizer step {step + 1} is not finite; lower learning_rate"
            )
        for name, value in metrics.items():
            self._metrics.setdefault(name, []).append(value)
        self.state.num_input_tokens_seen += int(
            torch.as_tensor(self.accelerator.gather(batch.length)).sum()
        )
        return loss.sum() / num_items_in_batch

    def _predictions(self, model: nn.Module, packed: ModelInputs) -> Predictions:
        """What a model predicts at the loss tokens, in the student's precision."""
        # An adapter leaves the head as it is.
        adapted = isinstance(model, FrozenAdapter)
        head = (
            self.lm.model if adapted else self.accelerator.unwrap_model(model)
        ).get_output_embeddings()
        assert head is not None
        # accelerate casts only the pass of the model that it trains.
        with self.accelerator.autocast():
            [hidden] = model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                attention_mask=packed.attention_mask,
                select=packed.select,
                with_head=False,
            ).hidden_states

            # Weights are cast once, not with every chunk of logits.
            device = hidden.device.type
            lower = torch.is_autocast_enabled(device)
            dtype = torch.get_autocast_dtype(device) if lower else hidden.dtype
        return Predictions.of_hidden(hidden.to(dtype), head.weight.to(dtype))

    def _layout(self, step: int, progress: float) -> BlockLayout:
        """The block grid of an optimizer step."""
        if self.method.block_schedule == "growing":
            return self.layouts[int(progress * len(self.layouts))]
        return self.layouts[derive_key(self.args.seed, "block", step) % len(self.layouts)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the objective's metrics, averaged since the last log over all processes."""
        for name, values in self._metrics.items():
            means = torch.as_tensor(self.accelerator.gather(torch.stack(values).float().mean()))
            logs[name] = round(means.mean().item(), 6)
        self._metrics.clear()
        super().log(logs, start_time)

    def record(self, values: dict[str, float]) -> None:
        """Log values of an optimizer step that are none of the objective's."""
        due = self.control.should_log
        super().log(values)
        # The library takes any log for the one that is due.
        self.control.should_log = due

    def save_student(self, directory: Path) -> None:
        """Write the model of this step in the published layout; an adapter is folded in."""
        if isinstance(self.lm.model, FSDPModule):
            whole = shards.gathered(self.lm.model)
            if whole is not None:
                replace(self.lm, model=whole).save(directory)
        elif self.adapter is None:
            self.lm.save(directory)
        else:
            self.adapter.save_merged(self.lm, directory)

    def save_trained(self, directory: Path) -> None:
        """Write what `fit` has trained in the published layout, an adapter also by itself.

        All processes call it, the first one writes, and it is written when they return.
        """
        if isinstance(self.lm.model, FSDPModule):
            self.save_student(directory)
        elif self.args.should_save:
            self.lm.save(directory)
            if self.adapter is not None:
                self.adapter.save(directory / ADAPTER_DIRECTORY)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The trainer's state comes last: a checkpoint that has one is complete.
        if self.reference is not None and self.sharding == "none" and self.args.should_save:
            directory = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            directory.mkdir(parents=True, exist_ok=True)
            if isinstance(self.reference, FrozenAdapter):
                self.reference.save(directory / REFERENCE_FILE)
            else:
                save_model(self.reference, str(directory / REFERENCE_FILE))
        super()._save_checkpoint(model, trial)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # Older releases of torch log one process's share of it otherwise.
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # transformers calls this in every process, `_save` in some releases in the first alone.
        if self.sharding == "none" and self.adapter is None:
            super().save_model(output_dir, _internal_call)
            return
        assert output_dir is not None
        if self.sharding == "full":
            state = shards.tensors("model", self.lm.model)
            if self.reference is not None:
                state |= shards.tensors("reference", self.reference)
            assert isinstance(self.optimizer, Optimizer)
            state |= shards.optimizer_tensors(self.lm.model, self.optimizer)
            shards.save(Path(output_dir), state)
        elif self.args.should_save:
            assert self.adapter is not None
            self.adapter.save(Path(output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharding == "none":
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            assert isinstance(self.lr_scheduler, LRScheduler)
            write_json(Path(output_dir) / SCHEDULE_FILE, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.sharding == "none" or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, schedule = self.optimizer, self.lr_scheduler
        assert isinstance(optimizer, Optimizer)
        assert isinstance(schedule, LRScheduler)
        shards.load(Path(checkpoint), shards.optimizer_tensors(self.lm.model, optimizer))
        schedule.load_state_dict(read_object(Path(checkpoint) / SCHEDULE_FILE))
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.sharding == "full":
            shards.load(Path(resume_from_checkpoint), shards.tensors("model", self.lm.model))
            return
        if self.adapter is not None:
            self.adapter.load(Path(resume_from_checkpoint))
            return
        with warnings.catch_warnings():
            # transformers reads the config as one of no family, which warns of `rope_scaling`.
            warnings.filterwarnings("ignore", "`rope_scaling`", FutureWarning)
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class TrainingCallback(TrainerCallback):
    """A callback of `fit`, which tells it the trainer."""

    trainer: DiffusionTrainer


class _ReferenceRounds(TrainingCallback):
    """Refreshes the reference, and restores it from the checkpoint that training resumes from."""

    def __init__(self, trainer: DiffusionTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self.trainer.method.reference_every
        assert every is not None
        if state.global_step % every == 0:
            self.trainer.refresh_reference()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reference = self.trainer.reference
        assert reference is not None
        if state.global_step:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            path = checkpoint / REFERENCE_FILE
            if self.trainer.sharding == "full":
                shards.load(checkpoint, shards.tensors("reference", reference))
            elif isinstance(reference, FrozenAdapter):
                reference.load(path)
            else:
                load_model(reference, str(path))
