"""The confidence-ordered full-step decoder at temperature 1 as a distribution over completions.

The decoder's choices form a tree whose nodes are states. The state alone determines which position
commits next, so exactly one path leads to each completion, and the completion's log-probability is
the sum of its tokens' along the path. At temperature 0 this is `low_confidence_static` at one token
a step. All this holds for the states in between too: decoding may stop where some positions are
`left` undecided, which `Denoiser.undecided` then marks.

Letters in shapes: N states, K completions a state, C all completions of one state,
S block size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from t3d.analysis.estimators import Marginals
from t3d.analysis.states import Denoiser
from t3d.core.rng import fold, uniform
from t3d.decoding.sampling import inverse_cdf


@dataclass(frozen=True)
class Joint:
    """The whole distribution of what is reached from one state."""

    ids: Tensor
    """Every completion of the block, int64 [C, S]."""
    log_probs: Tensor
    """Log-probability (nats) of each completion, float64 [C]."""


@dataclass(frozen=True)
class Paths:
    """K completions of each of N states, and the paths on which they were reached."""

    ids: Tensor
    """Token ids of the completions, int64 [N, K, S]."""
    step: Tensor
    """0-based step that committed the token, -1 where none did; int64 [N, K, S]."""
    log_probs: Tensor
    """Log-probability (nats) of each token when it was drawn, 0 where none was; [N, K, S]."""
    marginals: Marginals
    """Marginals, estimated from the predictions at all nodes of the paths."""


@torch.inference_mode()
def exact_joint(denoiser: Denoiser, index: int, left: int = 0) -> Joint:
    """Enumerate the decoding tree of the state `index`, level by level."""
    block, masked = denoiser.block[index, None], denoiser.masked[index, None]
    log_prob = torch.zeros(1, dtype=torch.float64, device=block.device)
    tokens = denoiser.allowed
    for _ in range(int(masked.sum()) - left):
        state = torch.full((len(block),), index, device=block.device)
        blocks, masks, log_probs = [], [], []
        for nodes, position, conditional in denoiser.next_tokens(state, block, masked):
            at = position[:, None, None].expand(-1, len(tokens), 1)
            child = block[nodes, None].repeat(1, len(tokens), 1)
            child.scatter_(2, at, tokens[None, :, None].expand_as(at))
            rest = masked[nodes].scatter(1, position[:, None], False)
            blocks.append(child.flatten(0, 1))
            masks.append(rest.repeat_interleave(len(tokens), 0))
            log_probs.append((log_prob[nodes, None] + conditional[:, tokens]).flatten())
        block, masked, log_prob = torch.cat(blocks), torch.cat(masks), torch.cat(log_probs)
    return Joint(block.masked_fill(masked, denoiser.undecided), log_prob)


@torch.inference_mode()
def exact_marginals(denoiser: Denoiser, left: Tensor | int = 0) -> Marginals:
    """Marginals and entropies of the joint of every state, by enumeration; `left` int64 [N]."""
    num, size = denoiser.block.shape
    shape = (num, size, denoiser.model.config.vocab_size)
    probs = torch.zeros(shape, dtype=torch.float64, device=denoiser.block.device)
    entropy = probs.new_zeros(num)
    for index, undecided in enumerate(torch.as_tensor(left).expand(num).tolist()):
        joint = exact_joint(denoiser, index, undecided)
        prob = joint.log_probs.exp()
        probs[index].scatter_add_(1, joint.ids.T, prob.expand(size, -1))
        entropy[index] = torch.special.entr(prob).sum()
    return Marginals(probs * denoiser.masked[..., None], entropy)


@torch.inference_mode()
def sample_paths(denoiser: Denoiser, num_samples: int, left: Tensor | int = 0) -> Paths:
    """Draw completions of every state; equal nodes share a forward pass.

    Marginals are Rao-Blackwellised: at each node of a path the whole predicted distribution
    counts, not only the drawn token. Marginals and entropy are unbiased. `left` is int64 [N].
    """
    num, size = denoiser.block.shape
    device = denoiser.block.device
    left = torch.as_tensor(left, device=device).expand(num)
    ids = denoiser.block.repeat_interleave(num_samples, 0)  # [N * K, S]
    masked = denoiser.masked.repeat_interleave(num_samples, 0)
    state = torch.arange(num, device=device).repeat_interleave(num_samples)
    sample = torch.arange(num_samples, device=device)
    keys = fold(denoiser.keys[:, None], sample).flatten()
    step = torch.full_like(ids, -1)
    log_probs = torch.zeros(ids.shape, dtype=torch.float64, device=device)
    shape = (num, size, denoiser.model.config.vocab_size)
    probs = torch.zeros(shape, dtype=torch.float64, device=device)
    entropy = probs.new_zeros(num)
    for number in range(int((denoiser.masked.sum(1) - left).max())):
        active = (masked.sum(1) > left[state]).nonzero()[:, 0]
        rows = torch.cat([state[active, None], ids[active], masked[active].long()], 1)
        nodes, inverse, count = rows.unique(dim=0, return_inverse=True, return_counts=True)
        draw = uniform(fold(keys[active], number))
        place, block, open_ = nodes[:, 0], nodes[:, 1 : 1 + size], nodes[:, 1 + size :].bool()
        for chosen, position, conditional in denoiser.next_tokens(place, block, open_):
            prob = conditional.exp()
            share = count[chosen].double() / num_samples
            where = place[chosen]
            probs.index_put_((where, position), share[:, None] * prob, accumulate=True)
            entropy.index_add_(0, where, share * torch.special.entr(prob).sum(-1))
            here = (inverse >= chosen[0]) & (inverse <= chosen[-1])
            # In parts, because many samples may be at one node, each with a row [V] of memory.
            for part in here.nonzero()[:, 0].split(denoiser.batch_size):
                node = inverse[part] - chosen[0]
                token = inverse_cdf(prob[node], draw[part])
                at = (active[part], position[node])
                ids[at], step[at], masked[at] = token, number, False
                log_probs[at] = conditional[node, token]
    each = (num, num_samples, size)
    ids = ids.masked_fill(masked, denoiser.undecided)
    probs[..., denoiser.undecided] += masked.view(each).double().mean(1)
    marginals = Marginals(probs, entropy)
    return Paths(ids.view(each), step.view(each), log_probs.view(each), marginals)
