"""Ranks meet at one address and open no port at any other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from pipelines.training import rendezvous
from pipelines.training.rendezvous import (
    GLOO_INTERFACE,
    interface_of,
    meeting_variables,
    open_meeting,
)
from tests.processes import listening

RANK = """
import sys
import torch
from torch import distributed

distributed.init_process_group("gloo")
value = torch.tensor([float(distributed.get_rank() + 1)])
distributed.all_reduce(value)
print(value.item(), flush=True)
sys.stdin.readline()
distributed.destroy_process_group()
"""


def inet(*addresses: str) -> list[SimpleNamespace]:
    """Addresses of an interface, as psutil lists them."""
    made = [
        SimpleNamespace(family=socket.AF_INET6 if ":" in one else socket.AF_INET, address=one)
        for one in addresses
    ]
    return [*made, SimpleNamespace(family=psutil.AF_LINK, address="02:00:00:00:00:01")]


MACHINE = {
    "lo": inet("127.0.0.1", "::1"),
    "eth0": inet("10.1.2.3", "fe80::1%eth0"),
    "ib0": inet("192.168.7.9", "fd00::9"),
}


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the address that Ray knows this node by; no Ray runs here."""
    return lambda host: monkeypatch.setattr(rendezvous, "node_address", lambda: host)


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("127.0.0.1", "lo"),
        ("127.77.3.2", "lo"),  # all of 127/8 is there without being listed
        ("::1", "lo"),
        ("10.1.2.3", "eth0"),
        ("fe80::1", "eth0"),
        ("fd00:0::9", "ib0"),
        ("10.1.2.4", None),
    ],
)
def test_the_interface_of_an_address(
    address: str, interface: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: MACHINE)
    assert interface_of(address) == interface


def test_an_interface_that_the_user_names_stays(
    at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    at("127.0.0.1")
    meeting = open_meeting()
    monkeypatch.delenv(GLOO_INTERFACE, raising=False)
    assert meeting_variables(meeting, 0, 2)[GLOO_INTERFACE] == interface_of("127.0.0.1")
    monkeypatch.setenv(GLOO_INTERFACE, "ib0")
    assert GLOO_INTERFACE not in meeting_variables(meeting, 0, 2)


def test_an_address_of_another_machine_is_refused(at: Callable[[str], None]) -> None:
    at("192.0.2.1")  # TEST-NET-1
    with pytest.raises(OSError, match="assign requested address"):
        open_meeting()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1"])
def test_ranks_join_and_listen_on_loopback_alone(
    host: str, at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(host)
    monkeypatch.delenv(GLOO_INTERFACE, raising=False)
    for _ in range(2):  # a process hosts one meeting after the other
        meeting = open_meeting()
        assert (host, meeting.port) in listening([os.getpid()])
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK],
                env={**os.environ, **meeting_variables(meeting, rank, 2)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        try:
            for rank in ranks:
                assert rank.stdout is not None
                assert rank.stdout.readline() == "3.0\n"
            opened = listening([rank.pid for rank in ranks])
            assert opened  # gloo's
            assert {address for address, _ in opened} <= {"127.0.0.1", "::1"}
        finally:
            for rank in ranks:
                rank.communicate("\n", timeout=60)
        assert [rank.returncode for rank in ranks] == [0, 0]
