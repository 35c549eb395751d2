"""Ray clusters of several nodes on this machine, for tests.

several_nodes     nodes side by side on loopback: quick, and one can be killed
namespaced_nodes  nodes with a network of their own each, as on several machines; needs root

Nothing here touches the Ray that the tests themselves are connected to: each cluster belongs to
a helper process that ends, and ends the cluster, with the test run; it keeps its files in a
folder of its own; and what connects to it is a process of its own, see ``driver``.

Every process of a cluster has RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN: `ray.init` with
an address never switches tokens on by itself, and `ray start` does only if it finds a token.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.servers.child import Child, Parent, child

OBJECT_STORE = 80 * 1024 * 1024
PORT = 6379


def environment(**more: str) -> dict[str, str]:
    """This process's environment without its own Ray, and with a token of the cluster's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # As the heads in infra have it: else a client of ray:// is turned away at random.
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "RAY_worker_niceness": "0",  # as in conftest.py
        # A killed node counts as dead after 3 s, not 15; a slow one still has 10 s an answer.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        **more,
    }


@contextmanager
def claimed() -> Iterator[int]:
    """A number of 1 to 250 that no other process has, for addresses; it goes with the process."""
    for number in random.sample(range(1, 251), 250):
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0colorcore-tests-{number}")  # in no folder: dropped by the kernel
            except OSError:
                continue
            yield number
            return
    raise RuntimeError("250 clusters are running")


# -- nodes on loopback --------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """A running cluster. Nodes are named by Ray's id for them, the head is not among them."""

    address: str
    env: dict[str, str]
    nodes: list[str]
    folder: Path  # Ray's files and logs, gone with the cluster
    _keeper: Child
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def add(self, cpus: int = 1) -> str:
        """Start another node and wait for it; its id."""
        node: str = self._keeper.ask(add=cpus)["node"]
        self.nodes.append(node)
        return node

    def kill(self, node: str) -> None:
        """SIGKILL to all processes of a node, its workers too."""
        self._keeper.ask(kill=node)
        self.nodes.remove(node)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """A process that `ray.init(address="auto")`, or ``address``, connects to this cluster."""
        return _start(command, self.env, options, self._started)

    def driver(
        self, command: Sequence[str], *, timeout: float = 240, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """``start``, and wait for its end; standard output and error in one string."""
        return _driver(self.start, command, timeout, options)


@contextmanager
def several_nodes(count: int, cpus_each: int = 1, *, head_cpus: int = 0) -> Iterator[Cluster]:
    """A head, by default without CPUs so that all tasks run elsewhere, and ``count`` nodes."""
    env = environment()
    words = ("keep", str(count), str(cpus_each), str(head_cpus))
    with child("tests.clusters", *words, env=env, seconds=120 + 60 * count) as keeper:
        address, nodes, folder = (keeper.hello[name] for name in ("address", "nodes", "folder"))
        env["RAY_ADDRESS"] = address
        cluster = Cluster(address, env, nodes, Path(folder), keeper)
        try:
            yield cluster
        finally:
            _end(cluster._started)


def wait_for(there: Callable[[], object], driver: subprocess.Popen[str]) -> None:
    """Wait until something is there; fails with the driver's output if that ends before."""
    end = time.monotonic() + 240
    while not there():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.3)


def _start(
    command: Sequence[str],
    env: dict[str, str],
    options: dict[str, Any],
    started: list[subprocess.Popen[str]],
) -> subprocess.Popen[str]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    given["env"] = env | (options.get("env") or {})
    process: subprocess.Popen[str] = subprocess.Popen([*map(str, command)], **given)
    started.append(process)
    return process


def _end(started: Iterable[subprocess.Popen[str]]) -> None:
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _driver(
    start: Any, command: Sequence[str], timeout: float, options: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    with start(command, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def keep(count: str, cpus_each: str, head_cpus: str) -> None:
    """The helper process of ``several_nodes``."""
    with claimed() as number:
        _keep(number, count, cpus_each, head_cpus)


def _keep(number: int, count: str, cpus_each: str, head_cpus: str) -> None:
    parent = Parent()
    folder = tempfile.mkdtemp(prefix="ray-")
    # Ray's files, the one with the current cluster's address too, which Cluster leaves alone then.
    os.environ["RAY_TMPDIR"] = folder
    import psutil
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster()

    # Each node has a loopback address of its own. Not 127.0.0.1: clients take that for this
    # machine's outer address, where nothing listens.
    addresses = (f"127.77.{number}.{node}" for node in range(1, 255))

    def add(cpus: int) -> Any:
        return cluster.add_node(
            num_cpus=cpus,
            node_ip_address=next(addresses),
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
        )

    def kill(node: Any) -> None:
        raylets = node.all_processes.get("raylet", [])
        workers = [
            process
            for raylet in raylets
            for process in psutil.Process(raylet.process.pid).children(recursive=True)
        ]
        cluster.remove_node(node, allow_graceful=False)
        for process in workers:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    try:
        add(int(head_cpus))
        nodes = {node.node_id: node for node in (add(int(cpus_each)) for _ in range(int(count)))}
        parent.send(address=cluster.address, nodes=list(nodes), folder=folder)
        for request in parent.requests():
            if "add" in request:
                node = add(request["add"])
                nodes[node.node_id] = node
                parent.send(node=node.node_id)
            else:
                kill(nodes.pop(request["kill"]))
                parent.send()
    except Exception as error:
        parent.send(error=f"{type(error).__name__}: {error}")
        raise
    finally:
        for node in reversed(cluster.list_all_nodes()):
            with suppress(Exception):
                kill(node)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


# -- nodes in network namespaces ----------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A Ray node with a network namespace to itself."""

    ip: str
    namespace: str
    temp_dir: Path

    def kill(self) -> None:
        """SIGKILL to all processes of the node; its address is dead then, too."""
        _kill_namespace(self.namespace)

    def cut(self) -> None:
        """Pull its cable: the node runs on, but reaches nobody."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def join(self) -> None:
        """Put the cable back."""
        _ip("-n", self.namespace, "link", "set", "eth0", "up")


@dataclass
class Network:
    """Ray nodes on a network of their own; the first one is the head."""

    address: str
    env: dict[str, str]
    host_ip: str | None
    folder: Path  # Ray's files and logs, gone with the network
    nodes: list[Node] = field(default_factory=list)
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def start(
        self, command: Sequence[str], *, at: Node | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """A process in the network of the head (or ``at``) that connects to this cluster.

        Wherever it is, Ray attaches it to the head, for the nodes share this machine's
        processes and files.
        """
        inside = ["ip", "netns", "exec", (at or self.head).namespace]
        return _start([*inside, *command], self.env, options, self._started)

    def driver(
        self,
        command: Sequence[str],
        *,
        at: Node | None = None,
        timeout: float = 240,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """``start``, and wait for its end; standard output and error in one string."""
        return _driver(functools.partial(self.start, at=at), command, timeout, options)


_numbers = itertools.count()


@contextmanager
def namespaced_nodes(
    count: int, cpus_each: int = 1, *, with_host: bool = False
) -> Iterator[Network]:
    """``count`` Ray nodes, the head among them, joined by a bridge; skips where it cannot be.

    with_host  join this machine's own network too, at ``host_ip``: servers that listen there
               (`serve_s3(host=network.host_ip)`) are for the tests and for all nodes
    """
    if reason := why_no_namespaces():  # not Linux, no iproute2, or no right to make them
        pytest.skip(reason)
    number = next(_numbers)
    prefix = f"colorcore-{os.getpid()}-{number}"
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    # The helper does the clearing up alone, so it is the same after an error and after a SIGKILL.
    with claimed() as net, child("tests.clusters", "clear_up", prefix, str(folder)):
        subnet = f"10.77.{net}"
        head = f"{subnet}.1"
        env = environment(RAY_ADDRESS=f"{head}:{PORT}")
        network = Network(f"{head}:{PORT}", env, None, folder)
        hub = f"{prefix}-hub"
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        if with_host:
            network.host_ip = f"{subnet}.254"
            cable = f"cc{os.getpid()}n{number}"
            _ip("link", "add", "name", cable, *_cable("host", hub))
            _ip("addr", "add", f"{network.host_ip}/24", "dev", cable)
            _ip("link", "set", cable, "up")
            _ip("-n", hub, "link", "set", "host", "master", "bridge", "up")
        for number in range(count):
            name, ip = f"{prefix}-{number}", f"{subnet}.{number + 1}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "add", "name", "eth0", *_cable(f"node{number}", hub))
            _ip("-n", hub, "link", "set", f"node{number}", "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{ip}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")
            node = Node(ip, name, folder / str(number))
            network.nodes.append(node)
            _start_ray(network, node, cpus_each)
        try:
            yield network
        finally:
            _end(network._started)


def _start_ray(network: Network, node: Node, cpus: int) -> None:
    first = node is network.head
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        *(("--head", f"--port={PORT}") if first else (f"--address={network.address}",)),
        *(("--include-dashboard=false",) if first else ()),
        f"--node-ip-address={node.ip}",
        f"--num-cpus={cpus}",
        f"--object-store-memory={OBJECT_STORE}",
        f"--temp-dir={node.temp_dir}",
        "--disable-usage-stats",
    ]
    # Not through a pipe: Ray's own processes would hold it open.
    with (network.folder / f"{node.ip}.log").open("w+") as log:
        process = network.start(command, at=node, stdout=log)
        if process.wait(timeout=180):
            log.seek(0)
            raise RuntimeError(f"ray start: {log.read()[-2000:]}")


@functools.cache
def why_no_namespaces() -> str:
    """What this machine lacks for ``namespaced_nodes``, by trying; empty if it has all."""
    if not sys.platform.startswith("linux"):
        return "network namespaces: needs Linux"
    if shutil.which("ip") is None:
        return "network namespaces: needs `ip`; install the package iproute2"
    one, two = f"colorcore-{os.getpid()}-try", f"colorcore-{os.getpid()}-try2"
    try:
        _ip("netns", "add", one)
        _ip("netns", "add", two)
        _ip("-n", one, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", one, "link", "add", "name", "one", *_cable("two", two))
        _ip("netns", "exec", one, "true")
    except RuntimeError as error:
        who = "" if os.geteuid() == 0 else "not root; "
        return f"network namespaces: needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN; {who}{error}"
    finally:
        for name in (one, two):
            with suppress(RuntimeError):
                _ip("netns", "del", name)
    return ""


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`ip {' '.join(words)}`: {done.stderr.strip()}")
    return done.stdout


def _cable(end: str, namespace: str) -> tuple[str, ...]:
    """What makes a link a cable whose other end has this name in that namespace."""
    return ("type", "veth", "peer", "name", end, "netns", namespace)


def _kill_namespace(name: str) -> None:
    """SIGKILL until none is left, for they may be starting others."""
    for _ in range(100):
        pids = [int(pid) for pid in _ip("netns", "pids", name).split()]
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    raise RuntimeError(f"{name}: processes {pids} do not end")


def clear_up(prefix: str, folder: str) -> None:
    """The helper process of ``namespaced_nodes``: it waits, then leaves nothing behind."""
    parent = Parent()
    parent.send()
    for _ in parent.requests():
        pass
    names = [line.split()[0] for line in _ip("netns", "list").splitlines()]
    # A namespace's links go with it, but later; a cable's other end goes with it at once.
    with suppress(RuntimeError):
        _ip("-n", f"{prefix}-hub", "link", "del", "host")
    for name in sorted(name for name in names if name.startswith(f"{prefix}-")):
        with suppress(RuntimeError):
            _kill_namespace(name)
        _ip("netns", "del", name)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    {"keep": keep, "clear_up": clear_up}[sys.argv[1]](*sys.argv[2:])
