"""Refuse a malformed checkpoint before any of it is loaded.

Only JSON of bounded size and the headers of safetensors files are read. What they claim is
compared before anything is built from it, so a file that lies can ask for no memory; no code of
a checkpoint runs, no pickle is opened and no file outside its directory is touched.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.activations import ACT2FN
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from t3d.core.files import first_words, read_object
from t3d.models.block_diffusion import BlockDiffusionConfig
from t3d.models.families import Family, family_of, on_meta
from t3d.models.files import check_links, read_generation

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = ("BF16", "F16", "F32", "F64")
HEAD = "lm_head.weight"
ROTARY = "rotary_emb.inv_freq"
"""Ending of the name of a buffer that older releases of transformers saved, and newer ones
compute."""

REQUIRED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "hidden_act", "rms_norm_eps"),
)
"""Keys whose default would be a guess at how the model was trained."""
REQUIRED_OF = {"sdar_moe": ("moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob")}
COUNTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("decoder_sparse_step", "block_size"),
)
REFUSED = {
    "quantization_config": "t3d does not load quantized weights; dequantize them first",
    "transformers_weights": "t3d reads model.safetensors or its shards; remove the key",
    "num_labels": "a language model has no labels; remove the key",
    "use_sliding_window": "t3d has no sliding window; set it to false or train without one",
}

ADAPTER_FILE = "adapter_config.json"
"""What makes a directory a LoRA adapter in peft's format."""

Shape = tuple[int, ...]
Tensors = dict[str, tuple[Path, Shape]]
"""Shape of each tensor, and the file that holds it."""


def check_checkpoint(directory: Path) -> dict[str, Any]:
    """The object of a checkpoint's config.json, if what lies beside it fits.

    Args:
        directory: one in the layout of the Hub.

    Raises:
        ValueError: one line that names the file, the key and the remedy, where a file is missing
            or damaged, where config.json describes no model of t3d's families, or where the
            names, shapes and number formats of the tensors are not those that it describes.
    """
    check_links(directory)
    adapter, path = directory / ADAPTER_FILE, directory / "config.json"
    if adapter.exists():
        raise ValueError(
            f"{adapter}: a LoRA adapter is no checkpoint; merge it into its base model "
            "(merge_and_unload of peft) and save that"
        )
    ggufs = sorted(directory.glob("*.gguf"))
    if ggufs and not any(directory.glob("*.safetensors")):
        raise ValueError(f"{ggufs[0]}: GGUF is not loaded directly; convert it first: t3d convert")
    if not path.is_file():
        raise ValueError(f"{directory}: no config.json; name a checkpoint directory")
    document = read_object(path)
    try:
        family = family_of(document.get("model_type"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check_values(path, document, family)
    read_generation(directory)
    tensors = read_tensors(directory)
    # Bounded, because modules are built of these numbers, which takes time and memory.
    for key in ("num_hidden_layers", "num_experts", "num_local_experts"):
        if document.get(key, 0) > len(tensors):
            raise ValueError(
                f"{path}: {key} is {document[key]}, but the weights have only {len(tensors)} "
                "tensors; correct it or copy the weights again"
            )
    _check_tensors(directory, _build_config(path, document, family), tensors)
    # Published checkpoints of the Qwen family may have these two in place of tokenizer.json.
    parts = all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not parts and not (directory / "tokenizer.json").is_file():
        raise ValueError(f"{directory}: no tokenizer.json; save a fast tokenizer beside the model")
    return document


def tensor_shapes(config: BlockDiffusionConfig) -> dict[str, Shape]:
    """Names and shapes of the tensors that a configuration describes, as published.

    Raises:
        ValueError: for sizes that no tensor can have.
    """
    try:
        model = on_meta(config)
        # Checkpoints store each expert's tensors separately; the model in memory stacks them.
        tensors = revert_weight_conversion(model, model.state_dict())
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"sizes that no model can have ({first_words(error)})") from None
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _show(value: object) -> str:
    """A value from a file, for a message: one short line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _check_values(path: Path, document: dict[str, Any], family: Family) -> None:
    """Check the value of every key by itself."""
    kind = document["model_type"]
    for key, remedy in REFUSED.items():
        if document.get(key):
            raise ValueError(f"{path}: has {key}; {remedy}")
    absent = [key for key in ("block_size", "mask_token_id") if document.get(key) is None]
    if absent and family.autoregressive == kind:
        raise ValueError(
            f"{path}: a {kind} without {absent[0]} is autoregressive; convert it first: t3d convert"
        )
    for key in (*REQUIRED, *REQUIRED_OF.get(kind, ())):
        if document.get(key) is None:
            raise ValueError(f"{path}: no {key}; copy the published config.json again")
    for key in COUNTS:
        value = document.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{path}: {key} must be a number from 1 up, got {_show(value)}")
    mask, vocabulary = document.get("mask_token_id"), document["vocab_size"]
    if mask is not None and (type(mask) is not int or not 0 <= mask < vocabulary):
        raise ValueError(
            f"{path}: mask_token_id {_show(mask)} is no token of the vocabulary of {vocabulary}; "
            "correct it in config.json"
        )
    hidden, heads = document["hidden_size"], document["num_attention_heads"]
    if document.get("head_dim") is None and hidden % heads:
        raise ValueError(
            f"{path}: hidden_size {hidden} is no multiple of num_attention_heads {heads}, "
            "and there is no head_dim; correct them"
        )
    activation = document["hidden_act"]
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise ValueError(f"{path}: hidden_act {_show(activation)} is unknown; correct it")
    _check_positive(path, "rms_norm_eps", document["rms_norm_eps"])
    _check_rope(path, document)


def _check_rope(path: Path, document: dict[str, Any]) -> None:
    """Check that RoPE's base is given, in the place of transformers 5, of older ones, or in both.

    Without it the library falls back to 10000, and the output would be wrong without an error.
    """
    nested = document.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise ValueError(f"{path}: rope_parameters is no object; copy the published one again")
    values = [v for v in (document.get("rope_theta"), nested.get("rope_theta")) if v is not None]
    if not values:
        raise ValueError(f"{path}: no rope_theta; add the one that the model was trained with")
    for value in values:
        _check_positive(path, "rope_theta", value)
    if values[0] != values[-1]:
        raise ValueError(
            f"{path}: rope_theta is {values[0]}, but {values[1]} in rope_parameters; correct one"
        )


def _check_positive(path: Path, key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{path}: {key} must be a positive number, got {_show(value)}")


def _build_config(path: Path, document: dict[str, Any], family: Family) -> Any:
    """The configuration, filled with the library's defaults, after checks across its keys."""
    kinds, num_layers = document.get("layer_types"), document["num_hidden_layers"]
    if kinds is not None and kinds != ["full_attention"] * num_layers:
        raise ValueError(
            f"{path}: layer_types is not full_attention for each of the {num_layers} layers, all "
            "that t3d has; correct it"
        )
    try:
        config: Any = family.config_class.from_dict(dict(document))
    except Exception as error:
        # The library's message ends with the reason; the lines before it list values.
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ValueError(
            f"{path}: no {document['model_type']} configuration: {reason[0].strip()[:200]}"
        ) from None
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise ValueError(
            f"{path}: num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{groups}; correct them"
        )
    if config.head_dim % 2:
        raise ValueError(f"{path}: head_dim {config.head_dim} is odd, RoPE turns pairs; correct it")
    if config.rope_parameters["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
        kind = _show(config.rope_parameters["rope_type"])
        raise ValueError(f"{path}: rope_type {kind} is unknown; correct it")
    if config.model_type == "sdar_moe" and config.num_experts_per_tok > config.num_experts:
        raise ValueError(
            f"{path}: num_experts_per_tok {config.num_experts_per_tok} is more than num_experts "
            f"{config.num_experts}; correct them"
        )
    return config


def read_tensors(directory: Path) -> Tensors:
    """The tensors of all shards, after a check that the index names just these."""
    index = directory / INDEX
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if not index.exists():
        if not found:
            pickles = [*directory.glob("*.bin"), *directory.glob("*.pt*")]
            first = min((path.name for path in pickles), default=None)
            remedy = f"{first} is a pickle, convert it to safetensors first"
            raise ValueError(
                f"{directory}: no *.safetensors weights; {remedy if first else 'copy them again'}"
            )
        stray = [name for name in found if name != WEIGHTS]
        if stray:
            raise ValueError(
                f"{directory}: {stray[0]} is neither {WEIGHTS} nor named by an index; "
                f"copy {INDEX} again or remove the file"
            )
        return _read_shards(directory, found)
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no weight_map of tensors to files; copy it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(
                f"{index}: weight_map puts {_show(name)} into {_show(shard)}, which is no file of "
                "this directory; copy it again"
            )
        if shard not in found:
            raise ValueError(
                f"{index}: weight_map names {_show(shard)}, which is not there; copy that file too"
            )
    stray = sorted(set(found) - set(weight_map.values()))
    if stray:
        raise ValueError(f"{directory}: {stray[0]} is in no weight_map of {INDEX}; remove one")
    tensors = _read_shards(directory, found)
    for name, (shard, _) in tensors.items():
        if weight_map.get(name) != shard.name:
            raise ValueError(
                f"{index}: weight_map puts {_show(name)} into {_show(weight_map.get(name))}, but "
                f"{shard.name} holds it; copy both again"
            )
    for name in weight_map:
        if name not in tensors:
            raise ValueError(
                f"{index}: weight_map puts {_show(name)} into {weight_map[name]}, which lacks it; "
                "copy both again"
            )
    return tensors


def _read_shards(directory: Path, names: list[str]) -> Tensors:
    tensors: Tensors = {}
    for shard in (directory / name for name in names):
        if not shard.is_file():
            raise ValueError(f"{shard}: no regular file; copy it again")
        for name, shape in _read_header(shard).items():
            if name in tensors:
                raise ValueError(
                    f"{shard}: {_show(name)} is in {tensors[name][0].name} as well; copy both again"
                )
            tensors[name] = shard, shape
    return tensors


def _read_header(shard: Path) -> dict[str, Shape]:
    """Shapes of a safetensors file; the library refuses offsets that do not tile the file."""
    try:
        with safe_open(shard, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        if _is_pickle(shard):
            raise ValueError(
                f"{shard}: a pickle by another name; convert it to safetensors first"
            ) from None
        raise ValueError(
            f"{shard}: damaged or cut short ({first_words(error)}); copy it again"
        ) from None
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(
                f"{shard}: {_show(name)} has numbers of type {dtype}, not {', '.join(DTYPES)}; "
                "t3d does not load quantized weights"
            )
    return shapes


def _is_pickle(path: Path) -> bool:
    """Whether the first bytes are a pickle's.

    A safetensors file could begin with the same bytes, its header's length, but then a brace
    follows.
    """
    with path.open("rb") as file:
        start = file.read(9)
    magic = (b"PK", *(bytes((0x80, protocol)) for protocol in range(2, 6)))
    return start.startswith(magic) and start[8:] != b"{"


def _check_tensors(directory: Path, config: Any, tensors: Tensors) -> None:
    misfit = "weights do not fit config.json"
    try:
        expected = tensor_shapes(config)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}; correct it") from None
    for name, shape in expected.items():
        if name not in tensors:
            if name == HEAD and config.tie_word_embeddings:
                continue
            remedy = "copy the weights or config.json again"
            if name == HEAD:
                remedy = "set tie_word_embeddings to true if the head is the embedding"
            raise ValueError(f"{directory}: {misfit}: {name} is missing; {remedy}")
        shard, found = tensors[name]
        if found != shape:
            raise ValueError(
                f"{shard}: {misfit}: {name} has shape {list(found)}, not {list(shape)}; "
                "copy both again"
            )
    extra = sorted(name for name in tensors.keys() - expected.keys() if not name.endswith(ROTARY))
    if extra:
        shard = tensors[extra[0]][0]
        raise ValueError(
            f"{shard}: {misfit}: {_show(extra[0])} is no tensor of it; copy both again"
        )
