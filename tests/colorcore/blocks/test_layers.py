import pytest
import torch

from colorcore.blocks.layers import group_norm, grow


def test_growing_repeats_the_last_row_and_column():
    photo = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    grown = [[1.0, 2.0, 3.0, 3.0], [4.0, 5.0, 6.0, 6.0], [4.0, 5.0, 6.0, 6.0], [4.0, 5.0, 6.0, 6.0]]
    assert grow(photo[None, None], 4)[0, 0].tolist() == grown


def test_what_fits_is_not_touched():
    photo = torch.rand(1, 1, 8, 16)
    assert grow(photo, 8) is photo


@pytest.mark.parametrize(("width", "groups"), [(1, 1), (4, 4), (7, 1), (48, 16), (64, 32)])
def test_group_norm_takes_as_many_groups_as_divide(width: int, groups: int):
    assert group_norm(width).num_groups == groups
