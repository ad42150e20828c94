"""Write a checkpoint in the published SDAR layout, with code that transformers alone can load."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from transformers import PreTrainedConfig

from t3d.core.dtypes import StoredDtype
from t3d.core.files import check_output, read_object, write_bytes, write_json
from t3d.interop.checkpoints.card import write_card
from t3d.interop.checkpoints.config import ExportConfig
from t3d.models import LanguageModel, from_pretrained
from t3d.models.families import family_of
from t3d.models.files import read_generation
from t3d.models.tokenizers import BUILT_IN

TEMPLATES = Path(__file__).parent / "templates"
"""Folder of model code that runs under transformers 4 and 5; type checkers, which know one of them,
skip it."""


def export(model: str | Path, output: Path, config: ExportConfig | None = None) -> None:
    """Write a checkpoint for transformers, SGLang and LMDeploy. Nothing is left after a failure.

    Args:
        model: a checkpoint directory, a Hub name, or a built-in name.
        output: the directory, new or empty.

    Raises:
        ValueError: if the output holds something or cannot be written, or the model cannot be
            loaded.
    """
    check_output(output)
    config = config or ExportConfig()
    size = config.max_shard_size
    if not re.fullmatch(r"\d+\s*(K|M|G)?B", size):
        raise ValueError(f"max_shard_size must be a size such as 5GB, got {size!r}")
    source = BUILT_IN.get(str(model), Path(model))
    lm = from_pretrained(
        model,
        device="cpu",
        dtype=getattr(torch, config.dtype or _stored_dtype(str(source))),
        block_size=config.block_size,
        mask_token_id=config.mask_token_id,
    )
    if lm.model.config.block_size is None:
        raise ValueError(f"{model}: config.json has no block_size; give --block_size")
    if config.untie and lm.model.config.tie_word_embeddings:
        _untie(lm.model)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ValueError(
            f"{output}: cannot be written ({error.strerror}); choose another output"
        ) from None
    try:
        partial.chmod(0o755)
        lm.model.save_pretrained(partial, max_shard_size=size)
        lm.tokenizer.save_pretrained(partial)
        _finish_config(partial)
        _finish_generation_config(partial, lm, source)
        _finish_tokenizer(partial, lm)
        write_code(partial)
        if (source / "provenance.json").exists():
            shutil.copy(source / "provenance.json", partial)
        write_card(partial, config, title=output.name, source=str(model))
        partial.rename(output)
    except OSError as error:
        raise ValueError(
            f"{output}: cannot be written ({error.strerror}); free the space or choose another"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stored_dtype(source: str) -> str:
    """The dtype that config.json states; float32 if none that t3d writes."""
    try:
        document, _ = PreTrainedConfig.get_config_dict(source)
    except Exception:
        # A broken file raises errors of many kinds; loading says what is wrong.
        return "float32"
    stated = document.get("dtype") or document.get("torch_dtype")
    return str(stated) if stated in get_args(StoredDtype) else "float32"


def _untie(model: Any) -> None:
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def _finish_config(directory: Path) -> None:
    """Replace transformers 5's keys by those that other engines and transformers 4 read."""
    path = directory / "config.json"
    document = read_object(path)
    name, prefix = document["model_type"], class_prefix(document["model_type"])
    document["architectures"] = [f"{prefix}ForCausalLM"]
    document["auto_map"] = {
        "AutoConfig": f"configuration_{name}.{prefix}Config",
        "AutoModel": f"modeling_{name}.{prefix}Model",
        "AutoModelForCausalLM": f"modeling_{name}.{prefix}ForCausalLM",
    }
    # These are written as rope_theta, rope_scaling and torch_dtype already.
    for key in ("rope_parameters", "dtype"):
        document.pop(key, None)
    if set(document.get("layer_types") or ()) <= {"full_attention"}:
        document.pop("layer_types", None)
    write_bytes(path, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def _finish_generation_config(directory: Path, lm: LanguageModel, source: Path) -> None:
    """Write the source's generation settings, such as calibrated ones, and every stop token."""
    ids = {"eos_token_id": list(lm.stop_token_ids), "pad_token_id": lm.pad_token_id}
    write_json(directory / "generation_config.json", read_generation(source) | ids)


def _finish_tokenizer(directory: Path, lm: LanguageModel) -> None:
    """Write tokenizer settings that transformers 4 also understands, with the mask token's name."""
    path = directory / "tokenizer_config.json"
    document = read_object(path)
    for key in ("backend", "is_local", "local_files_only", "name_or_path"):
        document.pop(key, None)
    if document.get("tokenizer_class") == "TokenizersBackend":
        document["tokenizer_class"] = "PreTrainedTokenizerFast"
    # transformers 5 writes as a list under this name what older ones call by another.
    if isinstance(document.get("extra_special_tokens"), list):
        document["additional_special_tokens"] = document.pop("extra_special_tokens")
    document["mask_token"] = lm.tokenizer.convert_ids_to_tokens(lm.mask_token_id)
    write_json(path, document)


def class_prefix(model_type: str) -> str:
    """The prefix of a family's class names, such as SDAR."""
    return family_of(model_type).model_class.__name__.removesuffix("ForCausalLM")


def write_code(directory: Path) -> None:
    """Put a family's configuration and modeling file beside its config.json."""
    name = read_object(directory / "config.json")["model_type"]
    model_class, prefix = family_of(name).model_class, class_prefix(name)
    # The class of transformers from which the family inherits its arithmetic.
    stock = next(c for c in model_class.__mro__ if c.__module__.startswith("transformers.models."))
    library = stock.__name__.removesuffix("ForCausalLM")
    for kind in ("configuration", "modeling"):
        text = (TEMPLATES / f"{kind}_sdar.py.txt").read_text(encoding="utf-8")
        text = text.replace("_sdar", f"_{name}").replace('"sdar"', f'"{name}"')
        text = re.sub(r"SDAR(?=Config|Model|ForCausalLM)", prefix, text)
        text = re.sub(r"\bQwen3(?=Config|Model|ForCausalLM|\b)", library, text)
        if kind == "modeling" and name == "sdar_moe":
            experts = (TEMPLATES / "experts.py.txt").read_text(encoding="utf-8")
            text = text.replace(
                "\n\nclass BlockDiffusion:", f"\n{experts}\n\nclass BlockDiffusion:"
            )
        (directory / f"{kind}_{name}.py").write_text(text, encoding="utf-8")
