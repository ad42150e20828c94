"""The one trainer: transformers.Trainer with a noiser, an objective and frozen models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback

from t3d.core.blocks import BlockLayout
from t3d.core.dtypes import torch_dtype
from t3d.core.rng import derive_key, fold
from t3d.core.trajectory import TrajectoryBatch
from t3d.models import LanguageModel
from t3d.noising import NoiserInput, Vocabulary
from t3d.objectives import Context, Predictions
from t3d.training.arguments import training_arguments
from t3d.training.config import Attention, TrainingConfig
from t3d.training.data import SortedBatchSampler
from t3d.training.forward import ModelInputs, assemble, attending
from t3d.training.lora import AdapterWeights
from t3d.training.methods import Method
from t3d.training.muon import muon
from t3d.training.sharding import ShardedWeights
from t3d.training.weights import Weights

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
        config: TrainingConfig,
        directory: Path,
        teacher: LanguageModel | None = None,
    ) -> None:
        arguments = training_arguments(config, directory)
        self.lm = lm
        self.attention: Attention = config.attention
        self.weights = Weights(lm)
        if config.sharding == "full":
            self.weights = ShardedWeights(lm)
        elif config.lora is not None:
            self.weights = AdapterWeights(lm, config.lora, arguments.seed)
        super().__init__(
            model=lm.model,
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=lambda rows: TrajectoryBatch.collate(rows, lm.pad_token_id).as_dict(),
            processing_class=lm.tokenizer,
            optimizers=(muon(lm.model, arguments) if config.optimizer == "muon" else None, None),
        )
        # transformers' own callback would print every log.
        self.remove_callback(PrinterCallback)
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is not None and plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO-3 splits the head, which t3d applies outside the forward pass; "
                "use t3d/recipes/accelerate/zero2.yaml, or training.sharding full without DeepSpeed"
            )
        # Keeps transformers from dividing the loss: `compute_loss` divides it by the number of
        # sequences in the whole accumulation window.
        self.model_accepts_loss_kwargs = True
        self.method = method
        self.vocabulary = Vocabulary.of(lm)
        sizes = config.block_sizes
        grows = method.block_schedule == "growing"
        self.layouts = [BlockLayout(size) for size in (sorted(sizes) if grows else sizes)]
        self.reference: nn.Module | None = None
        self.teacher: nn.Module | None = None
        # Samples are drawn for whole optimizer steps, so that results do not depend on the size
        # of micro-batches.
        self._sampler = SortedBatchSampler(
            [len(row["input_ids"]) for row in rows],
            self.get_total_train_batch_size(arguments),
            seed=arguments.data_seed or arguments.seed,
        )
        self._metrics: dict[str, list[Tensor]] = {}
        frozen_dtype = torch_dtype(config.frozen_dtype, arguments.device)
        if method.objective.needs_reference:
            self.reference = self.weights.frozen_copy(frozen_dtype)
            self.add_callback(_ReferenceRounds(self))
        if method.objective.needs_teacher:
            given = None if teacher is None else teacher.model.eval()
            self.teacher = given or self.weights.frozen_copy(frozen_dtype)
        self.weights.place(self.frozen, arguments.device, arguments.bf16)

    @property
    def frozen(self) -> list[nn.Module]:
        """The frozen models of the method: reference, teacher, both or none."""
        return [model for model in (self.reference, self.teacher) if model is not None]

    def refresh_reference(self) -> None:
        """Start a reference round: the reference becomes a frozen copy of the student."""
        assert self.reference is not None
        self.weights.refresh(self.reference)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Nothing, since `weights.place` does it."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SortedBatchSampler:
        return self._sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The accumulation window and the number of its sequences."""
        # Set here, because accelerate loses the epoch when a resumed run skips batches.
        self._sampler.set_epoch(self.state.global_step // self._sampler.num_batches)
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, torch.tensor(sum(len(b["input_ids"]) for b in batches), device=device)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; forward and backward pass use the same implementation of attention.

        With activation checkpointing the backward pass runs layers again, so it needs it as well.
        """
        models = [self.lm.model, *self.frozen]
        with attending([m for m in models if isinstance(m, PreTrainedModel)], self.attention):
            loss = super().training_step(*args, **kwargs)
        self.weights.after_step(self.frozen)
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
        views = self.method.noiser(
            NoiserInput(batch, layout, fold(keys, _VIEW), self.vocabulary, progress)
        )
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
            batch=batch,
            banned=self.lm.banned_token_ids,
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
        """A model's predictions at the loss tokens, in the student's precision."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        assert head is not None
        # accelerate casts only the model that it trains; frozen models need this context.
        with self.accelerator.autocast():
            [hidden] = model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                attention_mask=packed.attention_mask,
                select=packed.select,
                with_head=False,
            ).hidden_states

            # The head's weights are cast here once, rather than for every chunk of logits.
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
            # A micro-batch in which upstream's noise hides nothing has no cross-entropy.
            means = torch.as_tensor(self.accelerator.gather(torch.stack(values).float().nanmean()))
            logs[name] = round(means.mean().item(), 6)
        self._metrics.clear()
        super().log(logs, start_time)

    def record(self, values: dict[str, float]) -> None:
        """Log values of an optimizer step that do not come from the objective."""
        due = self.control.should_log
        super().log(values)
        # transformers would count this log as the regular one, and skip that.
        self.control.should_log = due

    def save_student(self, directory: Path) -> None:
        """Write the model of this step in the published layout; an adapter is merged."""
        self.weights.write(directory, self.args.should_save)

    def save_trained(self, directory: Path) -> None:
        """Write the trained model in the published layout, and an adapter also by itself.

        All processes must call it; the first one writes, and all return when that is done.
        """
        self.weights.write_trained(directory, self.args.should_save)
        self.accelerator.wait_for_everyone()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # Older releases of torch would log the norm of one process's share otherwise.
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Overridden here, because transformers calls this in every process; some releases call
        # `_save` in the first process only.
        assert output_dir is not None
        default = super().save_model
        self.weights.save(Path(output_dir), self, lambda: default(output_dir, _internal_call))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        default = super()._save_optimizer_and_scheduler
        self.weights.save_schedule(Path(output_dir), self, lambda: default(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        default = super()._load_optimizer_and_scheduler
        if checkpoint is not None:
            self.weights.load_schedule(Path(checkpoint), self, lambda: default(checkpoint))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        default, checkpoint = super()._load_from_checkpoint, resume_from_checkpoint
        self.weights.load(Path(checkpoint), lambda: default(checkpoint, model))


class TrainingCallback(TrainerCallback):
    """A callback whose attribute `trainer` is set by `fit`."""

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
            self.trainer.weights.load_reference(checkpoint, reference)
