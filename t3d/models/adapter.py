"""LoRA adapters (peft) on disk, and a model that one of them changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from t3d.core.files import first_words, read_object
from t3d.models.checkpoint import ADAPTER_FILE
from t3d.models.loading import LanguageModel, check_finite

WEIGHTS_FILE = "adapter_model.safetensors"
NAME = "default"
"""The adapter's name in a model, which peft leaves out on disk."""

KEYS = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
}
"""Keys of an adapter's configuration that say what it computes and where."""
KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` with which peft leaves the base's weights as they are."""


def on_disk(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's weights under the names of peft's files, by their names in the model."""
    return {f"base_model.model.{k.replace(f'.{NAME}.', '.')}": w for k, w in weights.items()}


def load_adapter(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Copy a file's weights into those of a model.

    Raises:
        ValueError: for a file that is missing, damaged, of another adapter or not finite.
    """
    try:
        found = load_file(path)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {first_words(error)}") from error
    own = on_disk(weights)
    if {k: w.shape for k, w in found.items()} != {k: w.shape for k, w in own.items()}:
        raise ValueError(
            f"{path}: an adapter of another model, of another rank or other layers, or more than "
            "plain LoRA, such as DoRA, biases or modules_to_save"
        )
    check_finite(str(path), found)
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(found[name])


def with_adapter(lm: LanguageModel, directory: Path) -> LanguageModel:
    """The model with the adapter in a directory, as `training.lora` or peft saved it.

    The weights are those of `lm`, which stays as it is; only the adapter takes memory.

    Raises:
        ValueError: without peft, or for an adapter that is damaged, of another model, or more than
            plain LoRA.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise ValueError(
            f"{directory} is a LoRA adapter, which needs peft; install the extra: "
            "pip install 't3d[lora]'"
        ) from None
    path = directory / ADAPTER_FILE
    document = read_object(path)
    if document.get("init_lora_weights", True) not in KEEPS_BASE:
        raise ValueError(
            f"{path}: init_lora_weights {document['init_lora_weights']!r} changes the base; "
            "convert the adapter to plain LoRA (path_initial_model_for_weight_conversion of peft)"
        )
    # New parameters over the same storage, since peft freezes those that it finds.
    own = lm.model.parameters()
    shared = {id(w): nn.Parameter(w.detach(), requires_grad=False) for w in own}
    model = copy.deepcopy(lm.model, shared)
    try:
        # Other keys are for training, change the base or name a module that peft would import.
        config = LoraConfig(**{key: document[key] for key in KEYS & document.keys()})
        LoraModel(model, config, NAME)
        if not isinstance(model.get_output_embeddings(), nn.Linear):
            raise ValueError("it adapts the head, whose weights decoding takes as they are")
    except Exception as error:
        raise ValueError(f"{path}: no LoRA adapter of {lm.name}: {first_words(error)}") from error
    adapter = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    load_adapter(directory / WEIGHTS_FILE, adapter)
    return replace(lm, model=model.eval(), name=str(directory))
