"""Run an exported folder by transformers alone. A script; it imports nothing of t3d.

    python probe.py DIRECTORY INPUTS OUTPUTS [DIRECTORY INPUTS OUTPUTS ...]

INPUTS and OUTPUTS are safetensors files. In: `ids`, int64 [B, L] of at least two blocks. Out, in
float32: `logits` [B, L, V] of whole sequences; `cached` [B, S, V], those of the last block after
the others went through the cache; `hidden` [B, L, D], what AutoModel gives; `prompt` int64 [L], the
tokens of a question in the chat template.
"""

import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache

QUESTION = "Tom has 3 apples and finds 14 more. How many are there?"


@torch.no_grad()
def probe(directory: str, inputs: str, outputs: str) -> None:
    ids = load_file(inputs)["ids"]
    name = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"
    settings = {"trust_remote_code": True, name: torch.float32}
    model = AutoModelForCausalLM.from_pretrained(directory, **settings).eval()
    size = model.config.block_size
    cache = DynamicCache()
    # The cache is given by position, after None for mask and positions, because releases of
    # transformers differ in its name.
    model(ids[:, :-size], None, None, cache, use_cache=True, store_kv=True)
    found = {"logits": model(ids).logits}
    # Run twice, because a pass that stores nothing must not change the cache.
    for _ in range(2):
        block = model(ids[:, -size:], None, None, cache, use_cache=True, store_kv=False)
        found["cached"] = block.logits
    base = AutoModel.from_pretrained(directory, **settings).eval()
    found["hidden"] = base(ids).last_hidden_state
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    turn = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    found["prompt"] = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    save_file({key: value.contiguous() for key, value in found.items()}, outputs)


if __name__ == "__main__":
    for at in range(1, len(sys.argv), 3):
        probe(*sys.argv[at : at + 3])
