from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward

from t3d.core.blocks import BlockLayout, Coordinates
from t3d.models.attention import additive_mask, attention_mask, dense_mask, flex_mask

HEADS, HEAD_SIZE = 2, 8


class Ungrouped(torch.nn.Module):
    """What eager attention asks of the layer that calls it."""

    num_key_value_groups = 1


@pytest.fixture(scope="module", params=[1, 4, 7])
def grid(request: pytest.FixtureRequest) -> Coordinates:
    """Three sequences of 20 to 260 tokens and two views: several BlockMask tiles, padding."""
    prompt, length = torch.tensor([9, 0, 210]), torch.tensor([64, 20, 260])
    return BlockLayout(request.param).training(prompt, length, num_views=2)


def heads(width: int, seed: int) -> Tensor:
    """[B, H, L, D]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, HEADS, width, HEAD_SIZE, generator=generator)


def tail(grid: Coordinates, start: int) -> Coordinates:
    return Coordinates(grid.position[:, start:], grid.block[:, start:], grid.stream[:, start:])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("start", [0, 100])
def test_all_three_implementations_attend_alike(grid: Coordinates, start: int):
    """Also with fewer queries than keys, as with a cache."""
    queries, width = tail(grid, start), grid.position.shape[1]
    q, k, v = heads(width, 0)[:, :, start:], heads(width, 1), heads(width, 2)
    dense = dense_mask(queries, grid)
    assert dense.shape == (3, 1, width - start, width)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=dense)

    flex = flex_attention(q, k, v, block_mask=flex_mask(queries, grid))
    torch.testing.assert_close(flex, expected, rtol=0, atol=1e-6)

    additive = additive_mask(dense, q.dtype)
    eager, _ = eager_attention_forward(Ungrouped(), q, k, v, additive, HEAD_SIZE**-0.5)
    torch.testing.assert_close(eager.transpose(1, 2), expected, rtol=0, atol=1e-6)


def test_a_block_mask_computes_just_the_tiles_that_hold_a_visible_key(grid: Coordinates):
    """Compiled kernels skip the other tiles."""
    mask = flex_mask(grid, grid)
    size = mask.BLOCK_SIZE[0]
    dense = dense_mask(grid, grid)
    pad = -dense.shape[-1] % size
    padded = torch.nn.functional.pad(dense, (0, pad, 0, pad)).unflatten(2, (-1, size))
    tiles = padded.unflatten(4, (-1, size)).any(dim=5).any(dim=3)
    assert tiles.shape[-1] > 1
    assert not tiles.all()
    assert torch.equal(mask.to_dense().bool(), tiles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_additive_mask_hides_exactly_and_never_makes_nan(dtype: torch.dtype):
    visible = torch.tensor([[True, False, True], [False, False, True]])
    weights = (torch.full((2, 3), 5.0, dtype=dtype) + additive_mask(visible, dtype)).softmax(-1)
    assert weights.dtype == dtype
    assert weights.tolist() == [[0.5, 0, 0.5], [0, 0, 1]]


def test_each_implementation_gets_its_own_form(grid: Coordinates):
    dense = dense_mask(grid, grid)
    sdpa = attention_mask("sdpa", grid, grid, torch.bfloat16)
    assert isinstance(sdpa, Tensor)
    assert torch.equal(sdpa, dense)
    eager = attention_mask("eager", grid, grid, torch.bfloat16)
    assert isinstance(eager, Tensor)
    assert torch.equal(eager, additive_mask(dense, torch.bfloat16))
    flex = attention_mask("flex_attention", grid, grid, torch.bfloat16)
    assert type(flex) is type(flex_mask(grid, grid))


def test_flash_attention_cannot_take_a_block_mask(grid: Coordinates):
    with pytest.raises(ValueError, match="'flash_attention_2' cannot take a block mask; use"):
        attention_mask("flash_attention_2", grid, grid, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_the_compiled_block_mask_is_the_eager_one_for_every_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    make = torch.compile(create_block_mask, dynamic=True, backend=count)
    for length in (150, 300, 420):
        grid = BlockLayout(4).training(torch.tensor([20, 9]), torch.tensor([length, 70]), 1)
        eager = flex_mask(grid, grid)
        with monkeypatch.context() as patch:
            patch.setattr("torch.nn.attention.flex_attention.create_block_mask", make)
            compiled = flex_mask(grid, grid)
        for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
            assert torch.equal(getattr(compiled, name), getattr(eager, name))
    # One for all lengths, since a batch has another length at every step.
    assert len(graphs) == 1
