"""On-policy risk and conditional total correlation as numbers, in nats a block.

Letters in shapes: N states, K samples a state, S block size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from t3d.core.rng import derive_key, fold, uniform

_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Marginals:
    """Marginals and entropy of p(x0 | x_t), or of p(x_t | x_T), exact or estimated.

    In x_t, undecided is one more token, which takes the place of a banned id.
    """

    probs: Tensor
    """Marginals p^i of the masked positions, 0 at visible ones; float64 [N, S, V]."""
    entropy: Tensor
    """Entropy of the joint distribution of each state (nats), float64 [N]."""

    def total_correlation(self) -> Tensor:
        """TC = sum_i H(p^i) - H(p) = KL(p || prod_i p^i), float64 [N].

        With estimated marginals it is the plug-in estimate: never negative, and too low in
        expectation, because entropy is concave. T3D Thm. 4.5, arXiv:2602.12262.
        """
        return torch.special.entr(self.probs).sum((1, 2)) - self.entropy

    def on_policy_risk(self, log_probs: Tensor) -> Tensor:
        """KL(p || prod_i p_theta^i) for a factorised one-step student, float64 [N].

        Linear in the marginals, so estimates of it are unbiased. T3D Prop. 4.3,
        arXiv:2602.12262.

        Args:
            log_probs: log-probabilities of the student at the states, [N, S, V].
        """
        # Banned ids have probability 0 in both, and 0 * inf would be NaN.
        log_probs = log_probs.double().masked_fill(self.probs == 0, 0.0)
        return -(self.probs * log_probs).sum((1, 2)) - self.entropy


def leave_one_out(marginals: Marginals, ids: Tensor, log_probs: Tensor) -> Tensor:
    """The total correlation with each sample scored by the marginals of the others, [N].

    It is too high in expectation, as the logarithm is concave, so together with the plug-in
    estimate it brackets the truth. Marginals below 2**-52 count as 2**-52, since rounding cannot
    tell them from 0.

    Args:
        marginals: estimated from the same samples.
        ids: sampled completions, int64 [N, K, S].
        log_probs: log-probability of each token when it was drawn, 0 where visible or undecided;
            float64 [N, K, S].
    """
    num_samples = ids.shape[1]
    mean = marginals.probs.gather(2, ids.transpose(1, 2)).transpose(1, 2)  # [N, K, S]
    others = (num_samples * mean - log_probs.exp()) / (num_samples - 1)
    visible = (marginals.probs.sum(2) == 0)[:, None]
    surprise = -others.clamp(min=2.0**-52).log().masked_fill(visible, 0.0)
    return (log_probs + surprise).sum(2).mean(1)


@dataclass(frozen=True)
class Estimate:
    """A mean over states, in nats a block."""

    mean: float
    ci95: tuple[float, float]
    """Bootstrap interval over states (percentiles of the resampled means)."""
    values: list[float]
    """The value of each state, in the order of the states."""

    @classmethod
    def of(cls, values: Tensor, seed: int) -> Estimate:
        """The mean of float64 [N] with its interval; the same resamples for every quantity."""
        num = len(values)
        resample = torch.arange(_NUM_RESAMPLES)[:, None]
        keys = fold(torch.tensor(derive_key(seed, "bootstrap")), resample, torch.arange(num))
        means = values[(uniform(keys) * num).long()].mean(1)
        low, high = torch.quantile(means, means.new_tensor([0.025, 0.975])).tolist()
        return cls(float(values.mean()), (low, high), values.tolist())

    def minus(self, other: Estimate, seed: int) -> Estimate:
        """The paired difference over the same states."""
        assert len(self.values) == len(other.values)
        values = [a - b for a, b in zip(self.values, other.values, strict=True)]
        return Estimate.of(torch.tensor(values, dtype=torch.float64), seed)
