"""What holds of every noiser."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t3d.core.blocks import BlockLayout
from t3d.core.trajectory import Trajectory
from t3d.noising import Noiser, NoiserInput, RandomMask, TrajectoryState
from tests.noising.blocks import (
    MASK,
    SIZES,
    VOCABULARY,
    batch_of,
    keys_of,
    noised,
    one_block,
    trajectories,
)

NOISERS: dict[str, Noiser] = {
    "random": RandomMask(),
    "state": TrajectoryState(level_power=1, random_share=0.3),
}


@pytest.mark.parametrize("name", list(NOISERS))
@given(items=st.lists(trajectories(), min_size=2, max_size=4), size=SIZES, data=st.data())
def test_a_view_depends_on_nothing_but_its_own_sequence_and_key(
    name: str, items: list[Trajectory], size: int, data: st.DataObject
):
    noiser, layout = NOISERS[name], BlockLayout(size)
    batch, keys = batch_of(items), keys_of(len(items))
    [together] = noiser(NoiserInput(batch, layout, keys, VOCABULARY, 0.5))
    order = data.draw(st.permutations(range(len(items))))
    number = order[0]
    batch = batch_of([items[number]])
    [alone] = noiser(NoiserInput(batch, layout, keys[[number]], VOCABULARY, 0.5))
    width = alone.xt.shape[1]
    for field in ("xt", "loss_mask", "weight"):
        assert torch.equal(getattr(together, field)[number, :width], getattr(alone, field)[0])
    assert (together.xt[number, width:] == MASK).all()
    assert not together.loss_mask[number, width:].any()


@pytest.mark.parametrize("name", list(NOISERS))
def test_noise_is_fresh_at_every_key(name: str):
    [long] = one_block(1, size=8, prompt=8)
    items = [long] * 200
    _, view = noised(NOISERS[name], items, 8)
    _, again = noised(NOISERS[name], items, 8)
    assert torch.equal(view.xt, again.xt)
    assert len(view.xt.unique(dim=0)) > 20
