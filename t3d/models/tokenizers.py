"""Where a checkpoint lies, and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from t3d.core.files import first_words
from t3d.core.suggest import did_you_mean
from t3d.models.checkpoint import check_checkpoint
from t3d.models.limits import check_growth

BUILT_IN = {"mini_teacher": Path(__file__).parent.parent / "assets" / "mini_teacher"}
"""Checkpoints that ship with the package."""
_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "merges.txt"]
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, whose weights are not read.

    Args:
        name: a directory, a Hub name, or a built-in name.

    Raises:
        ValueError: as `from_pretrained`.
    """
    source = locate(name)
    check_checkpoint(source)
    return read_tokenizer(source, name)


def read_tokenizer(source: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in the directory of the checkpoint that a user calls `name`."""
    check_growth(source / "tokenizer.json")
    try:
        # Read from its file alone where no class is named: Auto would add rules of the family.
        generic = get_tokenizer_config(source).get("tokenizer_class") in _GENERIC_TOKENIZERS
        loader = PreTrainedTokenizerFast if generic else AutoTokenizer
        # Without this refusal transformers may ask the user whether to run a checkpoint's code.
        tokenizer = loader.from_pretrained(source, trust_remote_code=False)
        # A tokenizer reads some of its settings only when it is used.
        tokenizer.decode(tokenizer("Is it so?", add_special_tokens=False)["input_ids"])
    except Exception as error:
        raise ValueError(
            f"{name}: cannot load the tokenizer ({first_words(error)}); "
            "copy its tokenizer.json and tokenizer_config.json again"
        ) from error
    return tokenizer


def token_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text that ids stand for, byte for byte."""
    # Tokenizers may be set to tidy blanks, which would change programs.
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def locate(name: str) -> Path:
    """The checkpoint's directory; a model of the Hub is downloaded into its cache."""
    path = BUILT_IN.get(name, Path(name))
    if path.is_dir():
        return path
    meant = did_you_mean(name, BUILT_IN)
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(f"{name}: no such checkpoint directory{meant}")
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(
            f"{name}: neither a directory nor a model of the Hub: {first_words(error)}{meant}"
        ) from error
