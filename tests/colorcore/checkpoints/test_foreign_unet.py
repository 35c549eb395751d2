"""Old .pt files against a second implementation of the guide's network, written from its text."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from colorcore.checkpoints import foreign_unet as module
from colorcore.checkpoints.checkpoint import CheckpointError
from colorcore.checkpoints.foreign_unet import READINGS, Reading, load_old_checkpoint
from colorcore.color.lab import rgb_to_lab
from tests.colorcore.checkpoints.made_up_unet import ConvBlock, UNetColorizer, conv_block, save


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def trained(**options) -> UNetColorizer:
    """With statistics, affine parameters and biases that are nobody's defaults."""
    torch.manual_seed(0)
    network = UNetColorizer(**options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for _ in range(3):
        network.train()(torch.rand(4, 1, 16, 16) * 2 - 0.5)
    return network.eval()


SEEN = {"centered": (-1.0, 1.0), "unit": (0.0, 1.0), "percent": (0.0, 100.0)}


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("block", [conv_block, ConvBlock])
def test_the_imported_network_is_the_same_function(tmp_path, name, block) -> None:
    reading = READINGS[name]
    theirs = trained(block=block, skip_first=reading.skip_first)
    if reading.scale == "percent":
        next(theirs.enc1.parameters()).data /= 100
    old = load_old_checkpoint(save(tmp_path / "best.pt", theirs))
    low, high = SEEN[reading.scale]
    L_norm = torch.rand(2, 1, 24, 16) * 2 - 1
    with torch.no_grad():
        expected = theirs((L_norm + 1) / 2 * (high - low) + low)
        found = old.model(reading)(L_norm)["ab"] / 128
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.05
    assert (old.options, old.epoch, old.loss) == (
        {"channels": 4, "depth": 3, "head": "ab"}, 9, 0.0421,
    )  # fmt: skip
    folded = 14 if block is conv_block else 0
    assert f"{len(old.names)} tensors mapped, {folded} of them conv biases folded" in old.about()
    assert set(old.names) == set(theirs.state_dict())


def test_another_reading_is_another_function(tmp_path: Path) -> None:
    old = load_old_checkpoint(save(tmp_path / "best.pt", trained()))
    L_norm = torch.rand(1, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        answers = [old.model(reading)(L_norm)["ab"] for reading in READINGS.values()]
    for index, one in enumerate(answers):
        assert all((one - other).abs().max() > 0.1 for other in answers[:index])


def test_an_rgb_head(tmp_path: Path) -> None:
    theirs = trained(out_ch=3)
    old = load_old_checkpoint(save(tmp_path / "best.pt", theirs))
    assert old.options["head"] == "rgb"
    L_norm = torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        rgb, found = theirs((L_norm + 1) / 2), old.model(Reading())(L_norm)
    torch.testing.assert_close(found["rgb"], rgb, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["ab"], rgb_to_lab(rgb)[:, 1:], rtol=0, atol=1e-2)


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel, lambda n: nn.DataParallel(Wrapper(n))])
def test_wrappers_are_removed(tmp_path, wrap) -> None:
    plain = load_old_checkpoint(save(tmp_path / "plain.pt", trained()))
    old = load_old_checkpoint(save(tmp_path / "wrapped.pt", wrap(trained())))
    assert old.wrapper in {"net.", "module.", "module.net."}
    assert all(name.startswith(old.wrapper) for name in old.names)
    mine, others = plain.weights(Reading()), old.weights(Reading())
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    assert f"'{old.wrapper}' removed" in old.about()


def spelled(theirs: dict[str, Tensor], **stages: str) -> dict[str, Tensor]:
    return {
        f"{stages.get(key.partition('.')[0], key.partition('.')[0])}.{key.partition('.')[2]}": value
        for key, value in theirs.items()
    }


@pytest.mark.parametrize(
    "stages",
    [
        {"enc1": "inc.double_conv", "enc2": "down1.maxpool_conv.1.double_conv",
         "enc3": "down2.maxpool_conv.1.double_conv",
         "bottleneck": "down3.maxpool_conv.1.double_conv",
         "up3": "up1.up", "dec3": "up1.conv.double_conv", "up2": "up2.up",
         "dec2": "up2.conv.double_conv", "up1": "up3.up", "dec1": "up3.conv.double_conv",
         "head": "outc.conv"},
        {"enc1": "downs.0.conv", "enc2": "downs.1.conv", "enc3": "downs.2.conv",
         "bottleneck": "bottleneck.conv", "up3": "ups.0", "dec3": "ups.1.conv", "up2": "ups.2",
         "dec2": "ups.3.conv", "up1": "ups.4", "dec1": "ups.5.conv", "head": "final_conv"},
        {"enc1": "enc_blocks.0", "enc2": "enc_blocks.1", "enc3": "enc_blocks.2",
         "bottleneck": "mid",
         "up3": "upconvs.0", "dec3": "dec_blocks.0", "up2": "upconvs.1", "dec2": "dec_blocks.1",
         "up1": "upconvs.2", "dec1": "dec_blocks.2", "head": "out.0"},
        {"up3": "upconv_1", "up2": "upconv_2", "up1": "upconv_3"},
    ],
)  # fmt: skip
def test_other_spellings_give_the_same_weights(tmp_path, stages) -> None:
    theirs = trained().state_dict()
    torch.save(theirs, tmp_path / "guide.pt")
    torch.save({"state_dict": spelled(theirs, **stages)}, tmp_path / "other.pt")
    mine = load_old_checkpoint(tmp_path / "guide.pt").weights(Reading())
    others = load_old_checkpoint(tmp_path / "other.pt").weights(Reading())
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_our_own_names_map_onto_themselves(tmp_path: Path) -> None:
    ours = load_old_checkpoint(save(tmp_path / "best.pt", trained(block=ConvBlock)))
    torch.save({"model": ours.weights(Reading())}, tmp_path / "ours.pt")
    names = load_old_checkpoint(tmp_path / "ours.pt").names
    assert names == {name: name for name in names}


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: without(s, "dec2.0.weight"), r"expected 2 layers .* decoder, found dec2\.3"),
        (lambda s: without(s, "dec2.1.running_var"), "nothing for decoder.1.1.running_var"),
        (lambda s: without(s, "head.weight", "head.bias"), "expected one head of .* found none"),
        (lambda s: without(s, "head.bias"), "nothing for head.bias"),
        (lambda s: {**s, "attention.weight": torch.zeros(3)}, "no place for attention"),
        (lambda s: {**s, "head.2.weight": torch.zeros(2, 4, 1, 1)}, "expected one head"),
        (lambda s: {**s, "up2.bias": torch.zeros(9)}, r"up2\.bias \(9,\) \(expected \(8,\)\)"),
        (lambda s: {**s, "enc2.3.weight": torch.zeros(8, 7, 3, 3)}, r"enc2\.3\.weight"),
        (lambda s: {**s, "head.weight": torch.zeros(313, 4, 1, 1)}, "found head of 313"),
        (lambda s: spelled(s, enc2="dec9"), r"convolution, 8 channels\) in the encoder"),
        (lambda s: spelled(s, enc1="stem"), r"no place for stem\.0\.weight \(4, 1, .* and 1 more"),
    ],
)  # fmt: skip
def test_what_does_not_match_is_refused_by_name(tmp_path, change, expected) -> None:
    torch.save({"model": change(trained().state_dict())}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_old_checkpoint(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@dataclass
class TrainConfig:
    lr: float = 2e-4


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_of_a_malicious_file_is_run(tmp_path: Path, legacy: bool) -> None:
    trap = tmp_path / "trap"
    record = {"model": trained().state_dict(), "cfg": Malicious(trap)}
    torch.save(record, tmp_path / "bad.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="so nothing was read"):
        load_old_checkpoint(tmp_path / "bad.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malicious(trap)))
    with pytest.raises(CheckpointError):
        load_old_checkpoint(tmp_path / "raw.pt")
    assert not trap.exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)["cfg"].close()  # the trap does work
    assert trap.exists()


def test_a_config_of_a_foreign_class_says_how_to_convert(tmp_path: Path) -> None:
    path = save(tmp_path / "best.pt", trained(), cfg=TrainConfig())
    with pytest.raises(CheckpointError, match=r"TrainConfig.*torch\.save\(\{'model'"):
        load_old_checkpoint(path)


def test_the_legacy_format_is_read(tmp_path: Path) -> None:
    state = trained().state_dict()
    torch.save({"model": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert len(load_old_checkpoint(tmp_path / "old.pt").names) == len(state)


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04 nor this", pickle.dumps({"a": 1}), None]
)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "best.pt"
    if content is None:  # cut off
        data = save(path, trained()).read_bytes()
        content = data[: len(data) // 2]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_old_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [torch.zeros(3), {}, {"model": {"a": 1}}, {"model": {}}, [1]])
def test_files_without_weights(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="expected"):
        load_old_checkpoint(tmp_path / "best.pt")


def test_a_file_that_is_gone_or_too_large(tmp_path, monkeypatch) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_old_checkpoint(tmp_path / "nowhere.pt")
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    with pytest.raises(CheckpointError, match="expected at most"):
        load_old_checkpoint(save(tmp_path / "best.pt", trained()))


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    torch.save(trained().half().state_dict(), tmp_path / "half.pt")
    weights = load_old_checkpoint(tmp_path / "half.pt").weights(Reading())
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
