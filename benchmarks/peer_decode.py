"""Another project's decoder in a process, and where it needs one an environment, of its own.

    python -m benchmarks.peer_decode PEER CHECKOUT MODEL DEVICE

decode.py starts it. Every line of stdin is a job as JSON, answered by a line of JSON: `seconds`,
`tokens` of every request, and `passes_per_block`, those of one request that are no prefill. The
first line says `ready` with versions, or for what `reason` the peer does not run here. Their
functions decode; this file calls them as their own scripts do, greedily.

sdar, sdar_exported: generate.py of JetAstra/SDAR on its modeling file (packages for CUDA have
    stand-ins) or on the exported folder's. It takes one request at a time.
dllm: the BD3LM sampler of ZHZisZZ/dllm on its model class for Qwen3, in left-padded batches.
jetengine: the engine in sample/ of Tyrion58/T3D, which needs packages for CUDA.
autoregressive: no peer of the method, but what diffusion has to beat: `generate` of transformers on
    the same weights as a causal model, a token a pass, in left-padded batches. CHECKOUT is unused.
"""

import importlib
import json
import sys
import time
import types
from importlib import metadata

import torch


def serve(decode, device, out):
    """Answer jobs until stdin ends."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    print(json.dumps({"ready": versions}), file=out, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        synchronize(device)
        began = time.perf_counter()
        tokens, passes = decode(job)
        synchronize(device)
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "tokens": tokens, "passes_per_block": passes}
        print(json.dumps(answer), file=out, flush=True)


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


class Passes:
    """Counts the forward passes of a model."""

    def __init__(self, model):
        self.num = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.num += 1

    def per_block(self, job, num_runs):
        """Of one run among several, each with one prefill; starts again from zero."""
        blocks = job["new_tokens"] // job["block_size"]
        num, self.num = self.num, 0
        return (num - num_runs) / (num_runs * blocks)


def batches_of(job):
    prompts, size = job["prompts"], job["batch_size"]
    return [prompts[i : i + size] for i in range(0, len(prompts), size)]


def place(model, device):
    return model.to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()


def sdar(checkout, directory, device, whose="authors_model"):
    probe = importlib.import_module("benchmarks.peer_probe")
    probe.import_authors(checkout)
    model = place(getattr(probe, whose)(directory), device)
    generate = importlib.import_module("generate")
    mask_id, passes = model.config.mask_token_id, Passes(model)
    # Theirs has no greedy choice that still ranks by probability, and may draw the mask.
    vars(generate)["sample_with_temperature_topk_topp"] = probe.greedy(mask_id)

    def decode(job):
        tokens = []
        for prompt in job["prompts"]:
            ids = generate.block_diffusion_generate(
                model,
                {"input_ids": torch.tensor([prompt], device=device)},
                mask_id,
                gen_length=job["new_tokens"],
                block_length=job["block_size"],
                denoising_steps=job["denoising_steps"],
                remasking_strategy="low_confidence_static",
            )
            tokens.append(ids[0, len(prompt) :].tolist())
        return tokens, passes.per_block(job, len(tokens))

    return decode


def sdar_exported(checkout, directory, device):
    return sdar(checkout, directory, device, whose="own_model")


def dllm(checkout, directory, device):
    # Their packages import training and all other families.
    for name in ("dllm", "dllm.core", "dllm.pipelines"):
        package = types.ModuleType(name)
        package.__path__ = [f"{checkout}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    samplers = importlib.import_module("dllm.core.samplers")
    family = importlib.import_module("dllm.pipelines.a2d")
    config = family.A2DQwen3Config.from_pretrained(directory)
    model = family.A2DQwen3LMHeadModel.from_pretrained(
        directory, config=config, attn_implementation="sdpa"
    )
    model = place(model, device)
    # The layers of transformers 4.57, for which it was written, say so themselves.
    for layer in model.model.layers:
        layer.attention_type = "full_attention"
    # Without an end token nothing stops early.
    tokenizer = types.SimpleNamespace(
        mask_token_id=config.mask_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    sampler, passes = samplers.BD3LMSampler(model=model, tokenizer=tokenizer), Passes(model)

    def decode(job):
        batches, new = batches_of(job), job["new_tokens"]
        tokens = []
        for batch in batches:
            ids = sampler.sample(
                batch,
                max_new_tokens=new,
                block_size=job["block_size"],
                steps_per_block=job["denoising_steps"],
                temperature=0.0,
                return_dict=False,
            )
            tokens += ids[:, -new:].tolist()
        return tokens, passes.per_block(job, len(batches))

    return decode


def autoregressive(checkout, directory, device):
    transformers = importlib.import_module("transformers")
    config = transformers.Qwen3Config.from_pretrained(directory)
    model = transformers.Qwen3ForCausalLM.from_pretrained(directory, config=config)
    model, passes = place(model, device), Passes(model)

    def decode(job):
        batches, new = batches_of(job), job["new_tokens"]
        tokens = []
        for batch in batches:
            longest = max(map(len, batch))
            padding = [longest - len(prompt) for prompt in batch]
            ids = [[0] * num + prompt for num, prompt in zip(padding, batch, strict=True)]
            mask = [[0] * num + [1] * (longest - num) for num in padding]
            found = model.generate(
                torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=[],
                pad_token_id=0,
            )
            tokens += found[:, -new:].tolist()
        return tokens, passes.per_block(job, len(batches))

    return decode


def jetengine(checkout, directory, device):
    sys.path.insert(0, f"{checkout}/sample")
    engine = importlib.import_module("jetengine_ext.llm")
    settings = importlib.import_module("jetengine_ext.sampling_params").SamplingParams
    with open(f"{directory}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    llm = engine.LLM(
        directory,
        enforce_eager=True,
        mask_token_id=config["mask_token_id"],
        block_length=config["block_size"],
    )

    def decode(job):
        asked = settings(
            topk=1,
            max_tokens=job["new_tokens"],
            ignore_eos=True,
            block_length=job["block_size"],
            denoising_steps=job["denoising_steps"],
            stop_words=[],
        )
        tokens = []
        for batch in batches_of(job):
            found = llm.generate(batch, asked, use_tqdm=False)
            tokens += [output["token_ids"][: job["new_tokens"]] for output in found]
        return tokens, None

    return decode


PEERS = {
    "sdar": sdar,
    "sdar_exported": sdar_exported,
    "dllm": dllm,
    "jetengine": jetengine,
    "autoregressive": autoregressive,
}


def main(peer, checkout, directory, device):
    # What libraries print is no answer.
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        decode = PEERS[peer](checkout, directory, device)
    except ImportError as error:
        print(json.dumps({"reason": f"{type(error).__name__}: {error}"}), file=out, flush=True)
        return
    with torch.no_grad():
        serve(decode, device, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
