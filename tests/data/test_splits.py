import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auxin.data.splits import hold_out
from auxin.errors import DataError


@settings(deadline=None, max_examples=50)
@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31),
)
def test_parts_are_disjoint_complete_and_stratified(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    kept, held = hold_out(labels, fraction, seed)
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist()) and held.tolist() == sorted(held.tolist())
    taken = torch.bincount(labels[held], minlength=len(counts))
    for count, number in zip(counts, taken.tolist(), strict=True):
        assert abs(number - fraction * count) <= 1 + 1e-9 or number == count - 1
        assert number < count
    if all(fraction * count <= count - 1 for count in counts):
        assert int(taken.sum()) == max(1, round(fraction * len(labels)))


def test_the_seed_decides() -> None:
    labels = torch.arange(1000) % 10
    first, again, other = (hold_out(labels, 0.1, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.bincount(labels[first]).tolist() == [10] * 10


def test_nothing_is_held_out_at_zero() -> None:
    kept, held = hold_out(torch.tensor([0, 1, 1]), 0.0, seed=0)
    assert kept.tolist() == [0, 1, 2]
    assert held.numel() == 0


def test_impossible_fractions_are_refused() -> None:
    with pytest.raises(DataError, match="not usable"):
        hold_out(torch.tensor([0, 1]), 1.0, seed=0)
    with pytest.raises(DataError, match="No class has two images"):
        hold_out(torch.tensor([0, 1]), 0.5, seed=0)
