"""Three real `adapter serve` processes on one PostgreSQL and one S3 store, behind haproxy.

- A server is a process of its own that tests may stop (SIGSTOP), kill, restart, arm with a failpoint, or start with
  another clock.
- haproxy asks each server whether it is ready and sends a request to another one when a connection fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from registry.client.registry import Registry
from tests import processes
from tests.faults.environments import Environments

COMMAND = "from registry.cli.main import main; main()"
READY_PATH = "/readyz"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
HAPROXY = """\
global
    maxconn 500
defaults
    mode http
    timeout connect 2s
    timeout client 90s
    timeout server 90s
    timeout check 2s
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response
frontend registry
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    balance roundrobin
    option httpchk GET {ready}
    default-server inter 300ms fall 2 rise 1
{servers}
"""


@dataclass
class Replica:
    """One server process. `skew` is what its clock is ahead, as faketime writes it: `+120s`."""

    environment: Mapping[str, str]
    folder: Path
    skew: str = ""
    port: int = field(default_factory=processes.free_port)
    process: subprocess.Popen[bytes] | None = None
    token: str = ""

    @property
    def url(self) -> str:
        """Where this server responds, without the proxy."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, failpoints: str = "") -> None:
        """Start the process and wait for its first line, which has the first token."""
        environment = {**os.environ, **self.environment, "REGISTRY_FAILPOINTS": failpoints}
        if self.skew:
            environment |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME": self.skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        with (self.folder / f"server-{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from registry.cli.main import main; main()",
                    "serve",
                    "--port",
                    str(self.port),
                    "--json",
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        line = self.process.stdout.readline() if self.process.stdout else b""
        if not line:
            raise processes.CannotStart(Path(log.name).read_text()[-2000:])
        self.token = json.loads(line)["token"] or self.token

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal to the process."""
        if self.process is None:
            raise RuntimeError("no server is running")
        self.process.send_signal(signal_number)

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """End the process and return its exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(signal_number)
        code = process.wait(processes.STOP_LIMIT_SECONDS)
        if process.stdout:
            process.stdout.close()
        return code

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The process is stopped in this block: it holds its connections and locks, and does nothing."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


@dataclass
class Cluster:
    """The servers and the proxy in front of them."""

    replicas: list[Replica]
    url: str
    token: str
    database_url: str

    def client(self, replica: Replica | None = None) -> Registry:
        """Return a client of the proxy, or of one server."""
        return Registry(replica.url if replica else self.url, self.token)


@contextlib.contextmanager
def running(environments: Environments, folder: Path, *, skews: tuple[str, ...] = ("", "", "")) -> Iterator[Cluster]:
    """Start a cluster with an empty registry, one server for each of `skews`."""
    environment = environments.environment("postgres", "s3")
    replicas = [Replica(environment, folder, skew) for skew in skews]
    try:
        for replica in replicas:  # the first one prepares the database and creates the token and the key
            replica.start()
        with _proxy(replicas, folder) as url:
            yield Cluster(replicas, url, replicas[0].token, environment["REGISTRY_DATABASE_URL"])
    finally:
        for replica in replicas:
            replica.stop(signal.SIGKILL)


@contextlib.contextmanager
def _proxy(replicas: list[Replica], folder: Path) -> Iterator[str]:
    port = processes.free_port()
    servers = "\n".join(
        f"    server r{r.port} 127.0.0.1:{r.port} check on-marked-down shutdown-sessions" for r in replicas
    )
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, ready=READY_PATH, servers=servers))
    command = [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", folder / "haproxy.cfg"]
    with processes.running(command, folder, stop=signal.SIGTERM) as process:
        url = f"http://127.0.0.1:{port}"
        processes.wait_until(lambda: _responds(url + READY_PATH), process, folder)
        yield url


def _responds(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False
