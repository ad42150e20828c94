"""LoRA (peft): small trained weights beside a frozen base, of which there is only one copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from t3d.core.rng import derive_key
from t3d.models import BlockDiffusionLM, LanguageModel
from t3d.models.adapter import NAME, WEIGHTS_FILE, load_adapter, on_disk
from t3d.models.loading import check_finite
from t3d.training.config import LoraSettings
from t3d.training.weights import REFERENCE_FILE, Library, Weights

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Names of the linear layers of attention and MLP, the same in every family."""
ADAPTER_DIRECTORY = "adapter"


class Adapter:
    """The LoRA weights in the layers of a language model.

    The model keeps its class and is called as before. The matrices B are zero at first, so that
    its predictions do not change; the matrices A are drawn from the seed. All other weights are
    frozen, embeddings and head as well.
    """

    def __init__(self, lm: LanguageModel, settings: LoraSettings, seed: int) -> None:
        """Raises: ValueError without peft, or for layers that the model lacks."""
        try:
            from peft import LoraConfig, LoraModel
        except ImportError:
            raise ValueError(
                "lora: needs peft; install the extra: pip install 't3d[lora]'"
            ) from None
        self.model = lm.model
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=_targets(lm.model, lm.name, settings),
            base_model_name_or_path=lm.name,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(derive_key(seed, "lora"))
            self._tuner = LoraModel(lm.model, config, NAME)
        # peft makes new layers in training mode, whatever mode the model is in.
        lm.model.train(lm.model.training)
        self.weights: dict[str, nn.Parameter] = {
            name: weight for name, weight in lm.model.named_parameters() if weight.requires_grad
        }
        """Adapter weights by their names in the model; kept after `merge`."""
        for weight in self.weights.values():
            # In half precision the optimizer's small steps would be rounded away.
            weight.data = weight.data.float() if weight.dtype.itemsize < 4 else weight.data

    def enable(self, enabled: bool) -> None:
        """Switch the adapter off, so that the model is the base, or on again."""
        if enabled:
            self._tuner.enable_adapter_layers()
        else:
            self._tuner.disable_adapter_layers()

    def merge(self) -> None:
        """Add the adapter to the layers' weights and remove its layers from the model."""
        self._tuner.merge_and_unload()
        self.model.requires_grad_(True)

    def save(self, directory: Path) -> None:
        """Write the adapter as peft reads it."""
        self._tuner.peft_config[NAME].save_pretrained(str(directory))
        save_file(on_disk(self.weights), directory / WEIGHTS_FILE, metadata={"format": "pt"})

    def load(self, directory: Path) -> None:
        """Take the weights that `save` wrote.

        Raises:
            ValueError: if they are those of another adapter.
        """
        try:
            load_adapter(directory / WEIGHTS_FILE, self.weights)
        except ValueError as error:
            raise ValueError(
                f"{error}; delete its directory to train anew, or restore the lora settings"
            ) from error

    def save_merged(self, lm: LanguageModel, directory: Path) -> None:
        """Write the checkpoint of the merged model, without merging this one."""
        from peft.tuners.lora import Linear

        weights = {
            name.replace(".base_layer.", "."): value
            for name, value in self.model.state_dict().items()
            if name not in self.weights
        }
        for name, module in self.model.named_modules():
            if isinstance(module, Linear):
                base: Tensor = weights[f"{name}.weight"]
                # Each merged weight moves to the CPU, since the device holds only one base.
                weights[f"{name}.weight"] = (base + module.get_delta_weight(NAME)).detach().cpu()
        lm.model.generation_config = lm.generation_config()
        check_finite(str(directory), weights)
        lm.model.save_pretrained(directory, state_dict=weights)
        lm.tokenizer.save_pretrained(directory)


class FrozenAdapter(nn.Module):
    """An earlier state of an adapted model: the shared base, and a frozen copy of the adapter.

    Until it is refreshed it is the base alone. It runs in evaluation mode, without gradients.
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self._adapter = adapter
        self.weights: Mapping[str, Tensor] = {}
        """Frozen adapter weights by their names in the model; none while this is the base alone."""
        self.eval()

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        """The output of the adapted model in this earlier state."""
        model, training = self._adapter.model, self._adapter.model.training
        self._adapter.enable(bool(self.weights))
        model.eval()
        try:
            # The student's weights must not be overwritten: its backward pass is yet to come.
            return functional_call(model, dict(self.weights), kwargs=inputs)
        finally:
            model.train(training)
            self._adapter.enable(True)

    def get_output_embeddings(self) -> nn.Module | None:
        """The base's head, which no adapter changes."""
        return self._adapter.model.get_output_embeddings()

    def refresh(self) -> None:
        """Become a copy of the student."""
        self.weights = {k: v.detach().clone() for k, v in self._adapter.weights.items()}

    def save(self, path: Path) -> None:
        save_file(dict(self.weights), path)

    def load(self, path: Path) -> None:
        """Take what `save` wrote."""
        own = self._adapter.weights
        self.weights = {k: v.to(own[k].device) for k, v in load_file(path).items()}


def adapter_parameters(model: BlockDiffusionLM, settings: LoraSettings) -> int:
    """Weights that an adapter has."""
    names = _targets(model, model.config.model_type, settings)
    layers = [(name.rpartition(".")[2], m) for name, m in model.base_model.named_modules()]
    return sum(
        settings.rank * (m.in_features + m.out_features)
        for name, m in layers
        if isinstance(m, nn.Linear) and name in names
    )


def _targets(model: BlockDiffusionLM, name: str, settings: LoraSettings) -> list[str]:
    """Names of the layers to adapt, as peft takes them.

    Args:
        name: of the model, for errors.
    """
    # Without the head, since objectives and decoding use the weights of the head itself.
    modules = model.base_model.named_modules()
    layers = {name.rpartition(".")[2] for name, m in modules if isinstance(m, nn.Linear)}
    if settings.target_modules is None:
        return [target for target in TARGETS if target in layers]
    for target in settings.target_modules:
        if target not in layers:
            raise ValueError(
                f"lora: target_modules: {name} has no linear layer {target!r} to adapt; "
                f"it has {', '.join(sorted(layers))}"
            )
    return settings.target_modules


class AdapterWeights(Weights):
    """Training of an adapter; the base is held once, and checkpoints hold the adapter alone."""

    def __init__(self, lm: LanguageModel, settings: LoraSettings, seed: int) -> None:
        super().__init__(lm)
        self.adapter = Adapter(lm, settings, seed)

    def frozen_copy(self, dtype: torch.dtype) -> nn.Module:
        return FrozenAdapter(self.adapter)

    def refresh(self, reference: nn.Module) -> None:
        assert isinstance(reference, FrozenAdapter)
        reference.refresh()

    def finish(self) -> None:
        self.adapter.merge()

    def write(self, directory: Path, is_first: bool) -> None:
        """Write the merged model of this step."""
        if is_first:
            self.adapter.save_merged(self.lm, directory)

    def write_trained(self, directory: Path, is_first: bool) -> None:
        """Write the merged model, and the adapter by itself."""
        if is_first:
            self.lm.save(directory)
            self.adapter.save(directory / ADAPTER_DIRECTORY)

    def save(self, directory: Path, trainer: Any, library: Library) -> None:
        if not trainer.args.should_save:
            return
        self.adapter.save(directory)
        if trainer.reference is not None:
            trainer.reference.save(directory / REFERENCE_FILE)

    def load(self, directory: Path, library: Library) -> None:
        self.adapter.load(directory)

    def load_reference(self, directory: Path, reference: nn.Module) -> None:
        assert isinstance(reference, FrozenAdapter)
        reference.load(directory / REFERENCE_FILE)
