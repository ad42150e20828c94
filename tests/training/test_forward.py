"""How clean and noised copies are laid out; that logits are right is an invariant's test."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import TrajectoryBatch
from t3d.noising import View
from t3d.training.forward import assemble

PAD = 99


def batch_of(shapes: list[tuple[int, int]]) -> TrajectoryBatch:
    """Token p of sequence b is 100 b + p."""
    rows = [
        {
            "input_ids": [100 * b + p for p in range(prompt + response)],
            "initial_ids": [99] * (prompt + response),
            "prompt_length": prompt,
            "num_response_tokens": response,
            "decode_order": [-1] * prompt + list(range(response)),
            "index": b,
            "log_probs": [0.0] * (prompt + response),
            "advantage": 0.0,
            "right": 0.0,
            "average_length": 1.0,
        }
        for b, (prompt, response) in enumerate(shapes)
    ]
    return TrajectoryBatch.collate(rows, PAD)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 2),
    st.integers(0, 99),
)
def test_every_loss_token_comes_once_with_its_target_weight_and_noised_token(
    shapes: list[tuple[int, int]], block_size: int, num_views: int, seed: int
):
    batch, layout = batch_of(shapes), BlockLayout(block_size)
    width = layout.ceil(batch.input_ids.shape[1])
    generator = torch.Generator().manual_seed(seed)
    views = []
    for view in range(num_views):
        xt = 1000 * (view + 1) + torch.arange(width).expand(len(shapes), width)
        loss = torch.zeros(xt.shape, dtype=torch.bool)
        loss[:, : batch.input_ids.shape[1]] = batch.target
        loss &= torch.rand(xt.shape, generator=generator) < 0.5
        weight = torch.rand(xt.shape, generator=generator)
        masked = loss & (torch.rand(xt.shape, generator=generator) < 0.5)
        views.append(View(xt, loss, weight, masked))
    inputs, tokens = assemble(batch, views, layout, "sdpa", torch.float32)

    expected = [
        (b, v, p)
        for b in range(len(shapes))
        for v, view in enumerate(views)
        for p in view.loss_mask[b].nonzero().flatten().tolist()
    ]
    place = torch.stack([tokens.sequence, tokens.view, tokens.position], 1)
    assert [tuple(row) for row in place.tolist()] == expected
    assert tokens.block.tolist() == [p // block_size for _, _, p in expected]
    assert tokens.num_views == num_views
    assert tokens.masked.tolist() == [bool(views[v].masked[b, p]) for b, v, p in expected]
    assert tokens.target.tolist() == [100 * b + p for b, _, p in expected]
    weights = [float(views[v].weight[b, p]) for b, v, p in expected]
    assert tokens.weight.tolist() == weights
    ids, position = inputs.input_ids.flatten(), inputs.position_ids.flatten()
    assert ids[inputs.select].tolist() == [1000 * (v + 1) + p for _, v, p in expected]
    assert position[inputs.select].tolist() == [p for _, _, p in expected]
    assert tokens.num_sequences == len(shapes)
    assert torch.equal(tokens.num_response_tokens, batch.num_response_tokens)

    # Every sequence lies in one piece: its clean copy without the last block, then of every view
    # the whole blocks that hold a loss token, from the block of the response on.
    pieces = []
    for b, (prompt, response) in enumerate(shapes):
        start, end = layout.floor(prompt), layout.ceil(prompt + response)
        piece = [100 * b + p for p in range(end - block_size)]
        for view in views:
            for at in range(start, end, block_size):
                block = slice(at, at + block_size)
                if view.loss_mask[b, block].any() or not expected:
                    piece += view.xt[b, block].tolist()
        pieces.append(piece)
    rows = inputs.input_ids.tolist()
    assert len(rows[0]) == max(map(len, pieces))
    for piece in pieces:
        assert any(row[at : at + len(piece)] == piece for row in rows for at in range(len(row)))
