"""A second implementation of the guide's network, written from its text, and its ``.pt`` files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


def conv_block(before: int, after: int, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU(),
    )  # fmt: skip


class ConvBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.net = conv_block(before, after, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class UNetColorizer(nn.Module):
    """Three scales, tanh ab or sigmoid RGB; ``block`` and ``skip_first`` as repositories differ."""

    def __init__(self, base=4, out_ch=2, *, block=conv_block, skip_first=True) -> None:
        super().__init__()
        self.skip_first = skip_first
        self.enc1 = block(1, base)
        self.enc2 = block(base, 2 * base)
        self.enc3 = block(2 * base, 4 * base)
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = block(4 * base, 8 * base)
        self.up3 = nn.ConvTranspose2d(8 * base, 4 * base, 2, stride=2)
        self.dec3 = block(8 * base, 4 * base)
        self.up2 = nn.ConvTranspose2d(4 * base, 2 * base, 2, stride=2)
        self.dec2 = block(4 * base, 2 * base)
        self.up1 = nn.ConvTranspose2d(2 * base, base, 2, stride=2)
        self.dec1 = block(2 * base, base)
        self.head = nn.Conv2d(base, out_ch, 1)

    def forward(self, L: Tensor) -> Tensor:
        one = self.enc1(L)
        two = self.enc2(self.pool(one))
        three = self.enc3(self.pool(two))
        x = self.bottleneck(self.pool(three))
        for up, dec, skip in (
            (self.up3, self.dec3, three), (self.up2, self.dec2, two), (self.up1, self.dec1, one)
        ):  # fmt: skip
            pair = (skip, up(x)) if self.skip_first else (up(x), skip)
            x = dec(torch.cat(pair, dim=1))
        answer = self.head(x)
        return answer.tanh() if answer.shape[1] == 2 else answer.sigmoid()


def save(path: Path, network: nn.Module, **more) -> Path:
    optimizer = torch.optim.AdamW(network.parameters())
    record = {
        "model": network.state_dict(),
        "opt": optimizer.state_dict(),
        "scaler": {"scale": 65536.0},
        "cfg": {"base_channels": 4, "lr": 2e-4, "data_dir": "photos"},
        "epoch": 9,
        "epoch_loss": 0.0421,
    }
    torch.save({**record, **more}, path)
    return path
