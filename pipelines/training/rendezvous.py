"""How the ranks of a training find each other: at one address, on the first rank's node.

Torch's own rendezvous binds to all interfaces and asks for no password, even for a training that
never leaves the machine. Here the store at which ranks meet binds to the node's address as Ray
knows it (127.0.0.1 for a local Ray), and gloo connects through the interface that has this
address. By itself gloo uses whatever address the hostname resolves to: on many machines that is
loopback, which no other node can reach.

This module imports Ray Train and torch; import it only where both are loaded anyway.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipelines.ray_internals import join_process_group, set_rank_variables

STORE_S = 300.0
"""Timeout in seconds of the first rank's own access to the store; torch sets the others'."""
BACKLOG = 4096
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where ranks meet: the first rank's address and port."""

    host: str
    port: int


_store: TCPStore | None = None
"""In the first rank's process: keeps the store alive until the next meeting replaces it."""


def open_meeting() -> Meeting:
    """Open a meeting in this process, the first rank's; close an earlier one.

    Raises:
        OSError: Ray's address of this node is none of this machine's.
    """
    global _store  # noqa: PLW0603 - a process has one first rank at a time
    host = node_address()
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


def meeting_variables(meeting: Meeting, rank: int, world: int) -> dict[str, str]:
    """The environment with which ``torch.distributed.init_process_group`` joins the others.

    ``LOCAL_RANK`` is left to the caller: it depends on how the ranks share GPUs.
    """
    variables = {
        "MASTER_ADDR": meeting.host,
        "MASTER_PORT": str(meeting.port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        # The store runs already: without this the first rank would try to start it again.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if GLOO_INTERFACE not in os.environ and (interface := interface_of(node_address())):
        variables[GLOO_INTERFACE] = interface
    return variables


def interface_of(address: str) -> str | None:
    """The network interface that has an address, if any; for all of 127/8 the loopback one."""
    wanted = ipaddress.ip_address(address)
    interfaces: dict[str, list[Any]] = psutil.net_if_addrs()
    for name, addresses in interfaces.items():
        for each in addresses:
            if each.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = ipaddress.ip_address(each.address.partition("%")[0])
            if own == wanted or (own.is_loopback and wanted.is_loopback):
                return name
    return None


def node_address() -> str:
    """This node's address as Ray knows it."""
    address: str = ray.util.get_node_ip_address()
    return address


# -- for Ray Train -------------------------------------------------------------------------------


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called in Ray Train's controller once all workers have started."""
        meeting = worker_group.execute_single(0, open_meeting)
        worker_group.execute(set_rank_variables)
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
    join_process_group(backend, rank, world)


class MeetingConfig(TorchConfig):
    """Ray Train's own setup of torch, except for where the ranks meet."""

    def __init__(self, *, use_gpu: bool) -> None:
        super().__init__(backend="nccl" if use_gpu else "gloo")

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that sets the ranks up."""
        return _Backend
