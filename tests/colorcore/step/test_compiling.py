"""Whether a network is compiled, and where the compiler keeps its code."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from colorcore.step import compiling
from colorcore.step.compiling import (
    announcement,
    expected_seconds,
    key_of,
    note_seconds,
    use_cache_folder,
    why_not,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CXX"):
        monkeypatch.setenv(name, "x")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLORCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("setting", "device", "steps", "answer"),
    [
        ("auto", GPU, 2000, None),  # 2000 steps save 36 s, compiling takes 25
        ("auto", GPU, 1389, None),
        ("auto", GPU, 1388, ""),
        ("auto", CPU, 10**6, ""),
        ("off", GPU, 10**6, ""),
        ("on", GPU, 1, None),
        ("on", CPU, 1, None),
    ],
)
def test_a_network_is_compiled_where_that_pays(
    monkeypatch: pytest.MonkeyPatch, setting: str, device: torch.device, steps: int, answer: str
):
    monkeypatch.setattr(compiling, "_missing_compiler", lambda _: None)
    assert why_not(setting, device, steps, 25.0) == answer


def test_without_a_compiler_one_line_says_so_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert why_not("on", CPU, 1, 1.0) == (
        "not compiling the network: expected the C++ compiler no-such-compiler, found none; "
        "install it or set CXX"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert why_not("on", GPU, 1, 1.0) == (
        "not compiling the network: expected the package triton, found none"
    )
    assert why_not("auto", GPU, 10**6, 1.0) == ""


def test_the_next_run_knows_how_long_the_last_one_took(cache: Path):
    key, other = key_of(CPU, "unet", {"channels": 4}), key_of(CPU, "unet", {"channels": 8})
    assert key != other
    assert expected_seconds("unet", key) == (25.0, False)
    note_seconds(key, 12.34)
    note_seconds(other, 7.0)
    assert expected_seconds("unet", key) == (12.3, True)
    assert expected_seconds("unet", other) == (7.0, True)
    for text in ("[", "[]", json.dumps({key: "soon"})):
        (cache / "compile.json").write_text(text)
        assert expected_seconds("unet", key) == (25.0, False)
    assert announcement(12.3, measured=True).endswith("last time this took 12 s")
    assert "about 25 s" in announcement(25.0, measured=False)


def test_compilers_keep_their_code_in_private_folders_below_the_cache(cache: Path):
    use_cache_folder()
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        assert os.environ[variable] == str(cache / name)
        assert stat.S_IMODE((cache / name).stat().st_mode) == 0o700


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, cache: Path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    use_cache_folder()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    assert not (cache / "inductor").exists()


def test_a_cache_that_cannot_be_made_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COLORCORE_CACHE", str(tmp_path / "file"))
    use_cache_folder()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    note_seconds("key", 1.0)
    assert expected_seconds("unet", "key") == (25.0, False)
