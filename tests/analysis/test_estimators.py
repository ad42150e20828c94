"""Risk and total correlation against enumeration by a slow reference."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from t3d.analysis.analyze import Analysis, measure
from t3d.analysis.config import AnalysisConfig
from t3d.analysis.estimators import Estimate, Marginals, leave_one_out
from t3d.analysis.full_steps import exact_joint, exact_marginals, sample_paths
from t3d.analysis.states import Denoiser, State
from t3d.decoding.config import DecodingConfig
from t3d.decoding.oracle import decode_one
from t3d.decoding.request import Request
from t3d.models import SDARForCausalLM
from t3d.testing import tiny

S = 3
BANNED = (UNDECIDED, MASK) = (5, 6)
TEACHER = tiny(vocab_size=7, block_size=S)
STUDENT = tiny(vocab_size=7, block_size=S, seed=1, initializer_range=0.2)


@st.composite
def states(draw: st.DrawFn) -> State:
    """Any prefix of whole blocks, any part of the block masked, random tokens among the masks."""
    prefix = draw(st.integers(0, 3).map(lambda n: n * S))
    masked = draw(st.lists(st.booleans(), min_size=S, max_size=S).filter(any))
    block = [
        draw(st.sampled_from([MASK, MASK, 2]) if hidden else st.integers(0, 5)) for hidden in masked
    ]
    ids = draw(st.lists(st.integers(0, 5), min_size=prefix, max_size=prefix))
    return State(ids, block, masked, draw(st.integers(0, 2**40)))


def fixed_states(num: int, *, same: bool = False) -> list[State]:
    """Fully and partly masked blocks after prefixes of several lengths; or one state again."""
    rng = random.Random(0)
    out = []
    for key in range(num):
        n = 1 if same else key
        prefix = [4, 0, 1] if same else [rng.randrange(5) for _ in range(S * (n % 3))]
        head = [n % 5] if n % 2 and not same else []
        block = head + [MASK] * (S - len(head))
        out.append(State(prefix, block, [False] * len(head) + [True] * (S - len(head)), key))
    return out


def denoiser(model: SDARForCausalLM, items: list[State], batch_size: int = 50) -> Denoiser:
    return Denoiser(model, items, banned_token_ids=BANNED, batch_size=batch_size)


def slow_log_probs(model: SDARForCausalLM, prefix: list[int], block: list[int]) -> Tensor:
    """The whole sequence in one pass, no cache and no padding, [S, V]."""
    with torch.no_grad():
        logits = model(torch.tensor([prefix + block])).logits[0, -S:]
    logits[:, list(BANNED)] = -math.inf
    return logits.log_softmax(-1)


def slow_joint(model: SDARForCausalLM, state: State, left: int = 0) -> dict[tuple[int, ...], float]:
    """Probabilities of all completions, or of all states with `left` undecided, by recursion."""

    def walk(block: list[int], masked: list[int]) -> dict[tuple[int, ...], float]:
        if len(masked) == left:
            return {tuple(UNDECIDED if p in masked else block[p] for p in range(S)): 1.0}
        probs = slow_log_probs(model, state.prefix, block).exp()
        position = max(masked, key=lambda p: (float(probs[p].max()), -p))
        out: dict[tuple[int, ...], float] = {}
        for token in range(5):
            child = [*block[:position], token, *block[position + 1 :]]
            for ids, prob in walk(child, [p for p in masked if p != position]).items():
                assert ids not in out, "a completion has one path"
                out[ids] = float(probs[position, token]) * prob
        return out

    return walk(state.block, [p for p in range(S) if state.masked[p]])


@settings(max_examples=8)
@given(st.lists(states(), min_size=1, max_size=3))
def test_the_joint_is_that_of_a_slow_recursion(items: list[State]) -> None:
    model = denoiser(TEACHER, items, batch_size=7)
    for index, state in enumerate(items):
        joint = exact_joint(model, index)
        expected = slow_joint(TEACHER, state)
        found = dict(
            zip(map(tuple, joint.ids.tolist()), joint.log_probs.exp().tolist(), strict=True)
        )
        assert len(found) == len(joint.ids) == 5 ** sum(state.masked)
        assert found == pytest.approx(expected, abs=1e-12)
        assert sum(found.values()) == pytest.approx(1, abs=1e-12)


@settings(max_examples=10)
@given(st.lists(st.tuples(states(), st.integers(0, S)), min_size=1, max_size=3))
def test_partly_decoded_states_are_those_of_a_slow_recursion(
    items: list[tuple[State, int]],
) -> None:
    starts, left = [state for state, _ in items], [min(n, sum(s.masked)) for s, n in items]
    model = denoiser(TEACHER, starts, batch_size=7)
    exact = exact_marginals(model, torch.tensor(left))
    for n, start in enumerate(starts):
        joint = slow_joint(TEACHER, start, left[n])
        marginal = torch.zeros(S, 7, dtype=torch.float64)
        for ids, prob in joint.items():
            for p in range(S):
                marginal[p, ids[p]] += prob
        correlation = sum(
            prob * (math.log(prob) - sum(math.log(marginal[p, ids[p]]) for p in range(S)))
            for ids, prob in joint.items()
        )
        assert float(exact.total_correlation()[n]) == pytest.approx(correlation, abs=1e-10)
        if left[n] >= sum(start.masked) - 1:
            # One token at a position that the state decides depends on no other.
            assert correlation == pytest.approx(0, abs=1e-10)
        # H(x0 | x_T) = H(x_t | x_T) + E H(x0 | x_t) over the model's own x_t.
        found = exact_joint(model, n, left[n])
        middle = []
        for ids in found.ids.tolist():
            hidden = [h and token == UNDECIDED for h, token in zip(start.masked, ids, strict=True)]
            pairs = zip(hidden, start.block, ids, strict=True)
            block = [before if h else after for h, before, after in pairs]
            middle.append(State(start.prefix, block, hidden, 0))
        rest = exact_marginals(denoiser(TEACHER, middle)).entropy @ found.log_probs.exp()
        whole = exact_marginals(denoiser(TEACHER, [start])).entropy
        assert float(exact.entropy[n] + rest) == pytest.approx(float(whole), abs=1e-10)


@settings(max_examples=10)
@given(states())
def test_risk_is_total_correlation_plus_mismatch(state: State) -> None:
    teacher, student = denoiser(TEACHER, [state]), denoiser(STUDENT, [state])
    joint = slow_joint(TEACHER, state)
    hidden = [p for p in range(S) if state.masked[p]]
    q = slow_log_probs(STUDENT, state.prefix, state.block)
    marginal = torch.zeros(S, 7, dtype=torch.float64)
    for ids, prob in joint.items():
        for p in hidden:
            marginal[p, ids[p]] += prob

    def divergence(other: Tensor) -> float:
        """KL(p || prod_i other_i), from its definition."""
        return sum(
            prob * (math.log(prob) - sum(float(other[p, ids[p]]) for p in hidden))
            for ids, prob in joint.items()
        )

    exact = exact_marginals(teacher)
    risk = float(exact.on_policy_risk(student.roots()))
    correlation = float(exact.total_correlation())
    each = [
        sum(float(x * (x.log() - y)) for x, y in zip(marginal[p], q[p], strict=True) if x > 0)
        for p in hidden
    ]
    assert risk == pytest.approx(divergence(q), abs=1e-10)
    assert correlation == pytest.approx(divergence(marginal.log()), abs=1e-10)
    assert risk == pytest.approx(correlation + sum(each), abs=1e-10)
    # A student that knows the teacher's marginals is left with the total correlation alone.
    best = float(exact.on_policy_risk(exact.probs.log()))
    assert best == pytest.approx(correlation, abs=1e-10)
    assert best <= risk + 1e-10


def test_a_factorised_sampler_has_no_total_correlation() -> None:
    model = tiny(vocab_size=7, block_size=S)
    for name, weight in model.named_parameters():
        # Without attention a token's prediction depends on nothing but itself.
        if name.endswith("o_proj.weight"):
            torch.nn.init.zeros_(weight)
    items = fixed_states(4)
    exact = exact_marginals(denoiser(model, items)).total_correlation()
    paths = sample_paths(denoiser(model, items), 8)
    high = leave_one_out(paths.marginals, paths.ids, paths.log_probs)
    for values in (exact, paths.marginals.total_correlation(), high):
        assert values.abs().max() < 1e-10
    assert exact_marginals(denoiser(TEACHER, items)).total_correlation().min() > 1e-3


@pytest.mark.parametrize("left", [[0, 0, 0, 0], [1, 0, 2, 1]])
def test_samples_follow_the_paths_of_the_joint(left: list[int]) -> None:
    items = fixed_states(4)
    paths = sample_paths(denoiser(TEACHER, items), 200, torch.tensor(left))
    for n, state in enumerate(items):
        joint = slow_joint(TEACHER, state, left[n])
        for k in range(200):
            ids, order = tuple(paths.ids[n, k].tolist()), paths.step[n, k].tolist()
            assert float(paths.log_probs[n, k].sum()) == pytest.approx(math.log(joint[ids]))
            steps = [s for s, hidden in zip(order, state.masked, strict=True) if hidden]
            assert sorted(steps) == [-1] * left[n] + list(range(sum(state.masked) - left[n]))
            visible = [i for i, hidden in enumerate(state.masked) if not hidden]
            assert all(ids[i] == state.block[i] and order[i] == -1 for i in visible)
        # Frequencies: Pearson's statistic over completions, mean C - 1, standard deviation 2C.
        drawn = [tuple(ids) for ids in paths.ids[n].tolist()]
        common = {ids: p for ids, p in joint.items() if p > 0.02}
        counts = [(drawn.count(ids), 200 * p) for ids, p in common.items()]
        statistic = sum((count - mean) ** 2 / mean for count, mean in counts)
        assert statistic < len(common) + 4 * math.sqrt(2 * len(common))


def test_estimates_agree_with_exact_values() -> None:
    num = 100
    items = fixed_states(num, same=True)
    model = denoiser(TEACHER, items)
    exact = exact_marginals(denoiser(TEACHER, items[:1]))
    q = denoiser(STUDENT, items).roots()
    risk, correlation = float(exact.on_policy_risk(q[:1])), float(exact.total_correlation())

    def bounds(values: Tensor) -> tuple[float, float]:
        """Four standard errors about the mean of independent repetitions."""
        half = 4 * float(values.std()) / math.sqrt(len(values))
        return float(values.mean()) - half, float(values.mean()) + half

    for num_samples in (4, 64):
        paths = sample_paths(model, num_samples)
        estimate = paths.marginals
        low, high = bounds(estimate.on_policy_risk(q))
        assert low < risk < high
        assert high - low < 0.2 * risk
        low, high = bounds(estimate.entropy)
        assert low < float(exact.entropy) < high
        plug_in = estimate.total_correlation()
        assert plug_in.min() > -1e-12
        above = leave_one_out(estimate, paths.ids, paths.log_probs)
        assert bounds(plug_in)[0] < correlation < bounds(above)[1]
    # The bias of few samples is gone at many, and at few it has the documented sign.
    assert float(plug_in.mean()) == pytest.approx(correlation, rel=0.06)
    assert float(above.mean()) == pytest.approx(correlation, rel=0.06)
    few = sample_paths(denoiser(TEACHER, fixed_states(1500, same=True), batch_size=1500), 2)
    assert bounds(few.marginals.total_correlation())[1] < correlation
    assert bounds(leave_one_out(few.marginals, few.ids, few.log_probs))[0] > correlation


def test_estimates_of_partly_decoded_states_bracket_the_exact_value() -> None:
    exact = exact_marginals(denoiser(TEACHER, fixed_states(1, same=True)), 1)
    paths = sample_paths(denoiser(TEACHER, fixed_states(1500, same=True), batch_size=1500), 4, 1)
    truth = float(exact.total_correlation())
    low = paths.marginals.total_correlation()
    high = leave_one_out(paths.marginals, paths.ids, paths.log_probs)
    for values, sign in ((low, -1), (high, 1)):
        error = values - truth
        assert sign * float(error.mean()) > 4 * float(error.std()) / math.sqrt(1500)
    # Marginals are unbiased, that of "undecided" too.
    for found, expected in (
        (paths.marginals.probs, exact.probs),
        (paths.marginals.entropy, exact.entropy),
    ):
        standard = found.std(0) / math.sqrt(1500)
        assert ((found.mean(0) - expected[0]).abs() < 4.5 * standard + 1e-12).all()


def test_leave_one_out_scores_a_sample_by_the_others() -> None:
    paths = sample_paths(denoiser(TEACHER, fixed_states(1)), 3)
    [root] = fixed_states(1)
    expected = 0.0
    for k in range(3):
        for p in range(S):
            others = []
            for j in range(3):
                # Refill what the other path had seen when it came to this position.
                seen = [
                    int(paths.ids[0, j, i]) if paths.step[0, j, i] < paths.step[0, j, p] else MASK
                    for i in range(S)
                ]
                probs = slow_log_probs(TEACHER, root.prefix, seen).exp()
                others.append(float(probs[p, paths.ids[0, k, p]]))
            own = others.pop(k)
            expected += (math.log(own) - math.log(sum(others) / 2)) / 3
    found = leave_one_out(paths.marginals, paths.ids, paths.log_probs)
    assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("exact", [True, False])
def test_batch_size_and_neighbours_change_nothing(exact: bool) -> None:
    items = fixed_states(5)
    # One token later.
    later = [
        dataclasses.replace(s, block=[*s.block[:2], 3], masked=[*s.masked[:2], False])
        for s in items
    ]
    models = [("a", TEACHER), ("b", STUDENT)]

    def run(order: int, batch_size: int) -> Analysis:
        config = AnalysisConfig(
            num_samples=5, exact=exact, batch_size=batch_size, noise_levels=(1.0, 0.5)
        )
        starts, states = items[::order], [items[::order], later[::order]]
        return measure(models, starts, states, config, banned_token_ids=BANNED)

    def values(analysis: Analysis) -> list[list[float]]:
        return [
            getattr(row, field.name).values
            for level in analysis.levels
            for row in level.measurements
            for field in dataclasses.fields(row)[1:]
        ]

    whole = values(run(1, 100))
    for batch_size in (2, 9):
        assert values(run(1, batch_size)) == [pytest.approx(v, abs=1e-9) for v in whole]
    backwards = values(run(-1, 100))
    assert [v[::-1] for v in backwards] == [pytest.approx(v, abs=1e-9) for v in whole]


def test_at_temperature_0_it_is_low_confidence_decoding() -> None:
    decoding = DecodingConfig(block_size=S, denoising_steps=S, temperature=0.0, max_new_tokens=S)
    for prompt in ([1, 2, 3], [0, 1, 4, 2, 2, 2], [4, 4, 0, 1]):
        start = len(prompt) - len(prompt) % S
        expected = decode_one(
            TEACHER,
            Request(prompt),
            dataclasses.replace(decoding, max_new_tokens=start + S - len(prompt)),
            mask_token_id=MASK,
            stop_token_ids=(),
            banned_token_ids=BANNED[:1],
        )
        head = prompt[start:]
        block = torch.tensor([head + [MASK] * (S - len(head))])
        masked = block == MASK
        model = denoiser(TEACHER, [State(prompt[:start], block[0].tolist(), masked[0].tolist(), 0)])
        step_map = [-1] * S
        for step in range(S - len(head)):
            [(_, position, log_probs)] = model.next_tokens(torch.tensor([0]), block, masked)
            block[0, position], masked[0, position] = log_probs.argmax(), False
            step_map[int(position)] = step
        assert block[0, len(head) :].tolist() == expected.response_ids
        assert step_map[len(head) :] == expected.step_map


def test_intervals() -> None:
    values = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate = Estimate.of(values, seed=3)
    low, high = estimate.ci95
    half = 1.96 * float(values.std()) / math.sqrt(200)
    assert estimate.mean == pytest.approx(float(values.mean()))
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert (low + high) / 2 == pytest.approx(estimate.mean, abs=0.1 * half)
    assert Estimate.of(values, seed=3) == estimate
    assert Estimate.of(values, seed=4).ci95 != estimate.ci95
    # Paired: what both share cancels.
    moved = Estimate.of(values + 1, seed=3).minus(estimate, seed=3)
    assert (moved.mean, *moved.ci95) == pytest.approx((1, 1, 1))


def test_banned_ids_of_no_probability_are_no_risk() -> None:
    probs = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    marginals = Marginals(probs, torch.tensor([math.log(2)], dtype=torch.float64))
    student = torch.tensor([[[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(marginals.on_policy_risk(student)) == pytest.approx(expected)
    impossible = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]).log()
    assert float(marginals.on_policy_risk(impossible)) == math.inf


def test_one_state_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 states, got 1"):
        measure([("a", TEACHER)], fixed_states(1), [], AnalysisConfig(), banned_token_ids=BANNED)
