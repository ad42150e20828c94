"""The authors' training step, in an environment of theirs. Run as a file by train.py.

    python peer_train.py T3D JOB

T3D is a checkout of github.com/Tyrion58/T3D, JOB the JSON that train.py writes. Their functions
compute everything; this file calls them in the order of their training loop, at their published
settings. Packages that only CUDA, configuration files and trackers need have stand-ins. The last
line printed is JSON: seconds of every optimizer step, peak_memory_bytes, losses.
"""

import importlib
import importlib.util
import json
import logging
import sys
import time
import types

import torch
from torch.nn.utils.rnn import pad_sequence

ALPHA, BETA, PATH, PATH_STEPS, BLOCK = 0.5, 0.1, 0.2, 4, 8


def rms_norm(x, weight, bias, eps):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


def stand_in(name, **members):
    module = types.ModuleType(name)
    # A package, for imports below it.
    module.__path__ = []
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    vars(module).update(members)
    sys.modules[name] = module


class Settings(dict):
    """OmegaConf's, as far as their functions read it."""

    __getattr__ = dict.__getitem__


def import_authors(checkout, on_gpu):
    stand_in("wandb")
    stand_in("torchvision", transforms=None)
    stand_in("omegaconf", OmegaConf=None, DictConfig=dict, ListConfig=list)
    stand_in("accelerate", Accelerator=None)
    stand_in("accelerate.logging", get_logger=lambda name, **_: logging.getLogger(name))
    stand_in("accelerate.utils", set_seed=torch.manual_seed)
    if not on_gpu:
        for name in ("flash_attn", "flash_attn.ops", "flash_attn.ops.triton"):
            stand_in(name, flash_attn_func=None, flash_attn_varlen_func=None)
        stand_in("flash_attn.ops.triton.layer_norm", rms_norm_fn=rms_norm)
        names = ("index_first_axis", "pad_input", "unpad_input")
        stand_in("flash_attn.bert_padding", **dict.fromkeys(names))
    # In place of this file's folder, where `train` is another.
    sys.path[0] = checkout
    return importlib.import_module("train.self_ddo_sdar_full")


def load(folder, device):
    modeling = importlib.import_module("models.sdar.modeling_sdar")
    settings = importlib.import_module("models.sdar.configuration_sdar").SDARConfig
    config = settings.from_pretrained(folder)
    config.fuse_cross_entropy = False
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = modeling.SDARForCausalLM.from_pretrained(
        folder, config=config, torch_dtype=dtype, attn_implementation="sdpa"
    )
    return model.to(device)


def lay_out(train, job):
    """Padded sequences as their scripts make them, once before training."""
    tokenizer = types.SimpleNamespace(pad_token_id=job["pad_token_id"])
    prompting = train.UniversalPrompting(
        tokenizer, max_prompt_len=job["cap"][0], max_gen_length=job["cap"][1]
    )
    # Every batch is as wide as the longest prompt and response of the data set.
    prompts = [[0] * job["longest"][0]] + [t["prompt_ids"] for t in job["trajectories"]]
    responses = [[0] * job["longest"][1]] + [t["response_ids"] for t in job["trajectories"]]
    padding = {"batch_first": True, "padding_value": job["pad_token_id"]}
    ids, _, start = prompting.lm_prompt(
        (
            pad_sequence([torch.tensor(p) for p in prompts], padding_side="left", **padding)[1:],
            pad_sequence([torch.tensor(r) for r in responses], **padding)[1:],
        )
    )
    training = Settings(
        method="semi-ar",
        mask_strategy="trace",
        mask_ratios=[1.0, 0.75, 0.5, 0.25],
        mask_ratio_exponent=8.0,
        block_size=BLOCK,
        alpha=ALPHA,
        beta=BETA,
    )
    config = Settings(training=training, model=Settings(random_ratio=0.1))
    data = train.collect_training_data(
        config,
        ids,
        start,
        job["pad_token_id"],
        job["mask_token_id"],
        job["mask_token_id"],
        2,
        step_map_list=[t["step_map"] for t in job["trajectories"]],
    )
    width = start + 2 * (ids.shape[1] - start)
    return config, data, start, train.make_basic_block_attention(width, start, BLOCK)


def main(checkout, path):
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    device = job["device"]
    torch.manual_seed(0)
    train = import_authors(checkout, device == "cuda")
    model, reference = load(job["model"], device), load(job["model"], device)
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    reference.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    config, (extended, p_mask, position, labels), start, attention = lay_out(train, job)
    seconds, losses = [], []
    for _ in range(1 + job["repeats"]):
        began, total = time.perf_counter(), 0.0
        optimizer.zero_grad()
        for row in range(len(extended)):
            inputs = [t[row : row + 1].to(device) for t in (extended, p_mask, position, labels)]
            shared = (model, reference, *inputs, start, attention, job["pad_token_id"])
            with torch.no_grad():
                frozen_real = train.compute_logp(*shared, reference_logits=True)
                frozen_fake, logits = train.compute_logp_fake(*shared, 0.0, reference_logits=True)
                fake = logits.argmax(-1)
            real = train.compute_logp(*shared)
            own_fake, logits = train.compute_logp_fake(*shared, 0.0, x_theta_fake=fake)
            loss, _ = train.compute_loss(config, real, own_fake, frozen_real, frozen_fake)
            steps = torch.tensor([job["trajectories"][row]["step_map"]], device=device)
            loss = loss + PATH * train.compute_path_loss_from_step_map(
                logits,
                inputs[3],
                steps,
                BLOCK,
                PATH_STEPS,
                job["mask_token_id"],
                job["pad_token_id"],
                start,
            )
            (loss / len(extended)).backward()
            total += loss.item() / len(extended)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        losses.append(total)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        with open("/proc/self/status", encoding="utf-8") as file:
            [line] = [line for line in file if line.startswith("VmHWM")]
        peak = int(line.split()[1]) * 1024
    print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak, "losses": losses}))


if __name__ == "__main__":
    main(*sys.argv[1:])
