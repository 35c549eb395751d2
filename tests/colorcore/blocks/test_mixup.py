"""Blends of a batch, by hand."""

from __future__ import annotations

import torch

from colorcore.blocks.mixup import blend_next


def test_each_item_is_blended_with_the_next_one_and_the_last_with_the_first() -> None:
    x = torch.tensor([0.0, 10.0, 100.0])[:, None, None, None].expand(3, 5, 2, 2)
    out = blend_next(x, torch.tensor([0.5, 0.1, 0.25]))
    torch.testing.assert_close(out[:, 4, 1, 1], torch.tensor([5.0, 19.0, 75.0]))
    assert torch.equal(blend_next(x[:1], torch.tensor([0.3])), x[:1])
