"""The authors' own SDAR on exported folders, in their environment. Run as a file by compat.py.

    python peer_probe.py SDAR [authors|folder DIRECTORY INPUTS OUTPUTS ...]

SDAR is a checkout of github.com/JetAstra/SDAR. Its modeling file needs CUDA packages for kernels
that plain torch computes as well: stand-ins take their names. `folder` runs the folder's modeling
file in place of the authors', under the same generate.py. In: `ids` [B, L], `prompts` [B, P].
Out: `logits` of ids under the block mask, and `steps1`, `steps2`, `steps4` [B, P + 24]: greedy, the
mask token never drawn, and ranked by the untempered probability as in t3d.
"""

import importlib
import importlib.util
import sys
import types

import torch
from safetensors.torch import load_file, save_file

NEW = 24


def rms_norm(x, weight, bias, eps):
    scaled = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def attend(query, key, value, causal, softmax_scale):
    heads = (t.transpose(1, 2) for t in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        *heads, is_causal=causal, scale=softmax_scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def rearrange(x, pattern):
    assert pattern in ("b l h d -> b l (h d)", "b h l d -> b l (h d)")
    return (x if pattern.startswith("b l h") else x.transpose(1, 2)).flatten(2)


def stand_in(name, **members):
    module = types.ModuleType(name)
    # A package, for imports below it.
    module.__path__ = []
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    vars(module).update(members)
    sys.modules[name] = module


def greedy(mask_id):
    """In place of generate.py's sampling, whose rank at top_k 1 would be 1 everywhere."""

    def sample(logits, **settings):
        logits = logits.clone()
        logits[..., mask_id] = -torch.inf
        probability, token = logits.softmax(-1).max(-1, keepdim=True)
        return token[..., 0], probability[..., 0]

    return sample


def import_authors(checkout):
    """Their modules, as `sdar` and `generate`."""
    for name in ("flash_attn", "flash_attn.ops", "flash_attn.ops.triton"):
        stand_in(name, flash_attn_func=attend, flash_attn_varlen_func=None)
    stand_in("flash_attn.ops.triton.layer_norm", rms_norm_fn=rms_norm)
    names = ("index_first_axis", "pad_input", "unpad_input")
    stand_in("flash_attn.bert_padding", **dict.fromkeys(names))
    stand_in("einops", rearrange=rearrange)
    # Only training calls it.
    stand_in("sdar", __path__=[f"{checkout}/training/model/SDAR-4B-Chat"])
    loss = "FusedLinearDiffusionCrossEntropyLoss"
    stand_in("sdar.fused_linear_diffusion_cross_entropy", **{loss: None})
    sys.path.insert(0, checkout)


def authors_model(directory):
    modeling = importlib.import_module("sdar.modeling_sdar")
    config = modeling.SDARConfig.from_pretrained(directory)
    config.fuse_cross_entropy = False
    return modeling.SDARForCausalLM.from_pretrained(
        directory, config=config, torch_dtype=torch.float32, attn_implementation="sdpa"
    )


def own_model(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, torch_dtype=torch.float32
    )


@torch.no_grad()
def run(whose, directory, inputs, outputs):
    tensors = load_file(inputs)
    model = (authors_model if whose == "authors" else own_model)(directory)
    model.eval()
    generate = importlib.import_module("generate")
    size, mask_id = model.config.block_size, model.config.mask_token_id
    vars(generate)["sample_with_temperature_topk_topp"] = greedy(mask_id)
    ids, prompts = tensors["ids"], tensors["prompts"]
    blocks = torch.arange(ids.shape[1]) // size
    visible = (blocks[:, None] >= blocks)[None].float()
    position = torch.arange(ids.shape[1])[None].expand_as(ids)
    found = {"logits": model(ids, attention_mask=visible, position_ids=position).logits}
    for steps in (1, 2, 4):
        rows = [
            generate.block_diffusion_generate(
                model,
                {"input_ids": prompt[None]},
                mask_id,
                gen_length=NEW,
                block_length=size,
                denoising_steps=steps,
                remasking_strategy="low_confidence_static",
            )
            for prompt in prompts
        ]
        found[f"steps{steps}"] = torch.cat(rows)
    save_file({key: value.contiguous() for key, value in found.items()}, outputs)


if __name__ == "__main__":
    import_authors(sys.argv[1])
    for at in range(2, len(sys.argv), 4):
        run(*sys.argv[at : at + 4])
