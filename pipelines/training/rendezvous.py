"""How the ranks of a training find each other: at one address of the first one's node.

torch's own rendezvous listens on all of a machine's addresses and asks nobody for a password, also
for a training that never leaves the machine. Here the store at which ranks meet listens on the
node's address as Ray knows it, 127.0.0.1 for a local Ray, and gloo's connections go through the
interface that has this address: left alone it takes whatever the host's name resolves to, which
on many machines is loopback, where no other node can reach it.

It imports Ray Train and torch: import it where they are there anyway.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)
from torch.distributed import TCPStore  # type: ignore[attr-defined]

STORE_S = 300.0
"""Seconds that the first rank's own access to the store may take; for joining, torch's hold."""
BACKLOG = 4096
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where ranks meet: the first one's address and port."""

    host: str
    port: int


_store: TCPStore | None = None
"""Of the first rank's process: the ranks' store lives as long as it does, or the next one."""


def open_meeting(host: str | None = None) -> Meeting:
    """Let ranks meet in this process, the first one's; ``host`` is this node's by default.

    A meeting that was open here before is closed.

    Raises:
        OSError: the address is none of this machine's.
    """
    global _store  # noqa: PLW0603 - a process has one first rank at a time
    host = host or _own_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind((host, 0))
        listening.listen(BACKLOG)
        port = listening.getsockname()[1]
        _store = TCPStore(
            host,
            port,
            is_master=True,
            timeout=timedelta(seconds=STORE_S),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
    return Meeting(host, port)


def meeting_variables(
    meeting: Meeting, rank: int, world: int, address: str | None = None
) -> dict[str, str]:
    """The environment with which ``torch.distributed.init_process_group`` joins the others.

    ``address`` is that of this rank's node, by default as Ray knows it. ``LOCAL_RANK`` is not
    among them: it depends on how the ranks share GPUs.
    """
    variables = {
        "MASTER_ADDR": meeting.host,
        "MASTER_PORT": str(meeting.port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        # All ranks, the first one too, are guests of a store that is there already.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if GLOO_INTERFACE not in os.environ and (interface := interface_of(address or _own_address())):
        variables[GLOO_INTERFACE] = interface
    return variables


def interface_of(address: str, interfaces: Mapping[str, list[Any]] | None = None) -> str | None:
    """The network interface that has an address; of loopback addresses, the one for all of them.

    ``interfaces`` are those of this machine by default, as psutil lists them. None if none has it.
    """
    wanted = ipaddress.ip_address(address)
    for name, having in (interfaces or psutil.net_if_addrs()).items():
        for each in having:
            if each.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = ipaddress.ip_address(each.address.partition("%")[0])
            if own == wanted or (own.is_loopback and wanted.is_loopback):
                return name
    return None


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()
    return address


# -- for Ray Train -------------------------------------------------------------------------------


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called in Ray Train's controller, with all workers there."""
        meeting = worker_group.execute_single(0, open_meeting)
        worker_group.execute(_set_torch_distributed_env_vars)
        world = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, meeting, rank, world, backend_config.backend
                )
                for rank in range(world)
            ]
        )


def _join(meeting: Meeting, rank: int, world: int, backend: str) -> None:
    os.environ.update(meeting_variables(meeting, rank, world))
    _setup_torch_process_group(backend, rank, world, "env://")


class MeetingConfig(TorchConfig):
    """Ray Train's own setup of torch, but for where the ranks meet; of ``TorchTrainer``."""

    def __init__(self, *, use_gpu: bool) -> None:
        super().__init__(backend="nccl" if use_gpu else "gloo")

    @property
    def backend_cls(self) -> type[Backend]:
        """Who sets the ranks up."""
        return _Backend
