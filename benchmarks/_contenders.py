"""Who moves adapters in benchmarks/transfer.py: each is a command, timed as a process of its own from start to end.

    Ours         adapter push-all / pull-all / push / pull against `adapter serve`
    Oras         oras push / pull against docker-registry (Debian's packages), one after the other or four at once
    Plain        an S3 client that only copies files to and from the store: obstore, boto3, boto3 tuned

Example
    >>> with ours(folder, env) as it:
    ...     it.push_fleet([Path("fleet/a0")]).seconds
    0.8
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import _adapters
from registry.api.bases import BaseAdd
from registry.client.local import base_folder
from registry.client.registry import Registry

SPACE = "bench"
WARM_STEP_BYTES = 2**20
IDLE_SECONDS = 1.0
"""Longer than the pause after which our server measures what was pushed (`QUIET_SECONDS` of its weights check)."""
IDLE_SHARE = 0.05
IDLE_LIMIT_SECONDS = 60
ADAPTER = [sys.executable, "-c", "from cli.main import main; main()"]
SERVER_LIMIT_SECONDS = 60


@dataclass
class Timed:
    """Commands that ended well: wall time, CPU of theirs and of the servers, the largest resident size of a process."""

    seconds: float
    peak_bytes: int = 0
    cpu_seconds: float = 0.0
    server_cpu_seconds: float = 0.0


def timed(
    commands: Sequence[Sequence[str]],
    servers: Sequence[int],
    at_once: int = 1,
    env: Mapping[str, str] | None = None,
) -> Timed:
    """Run the commands, some at once. A command that fails is an error: a benchmark of failures would look fast."""
    spent = 0.0
    served = cpu_of(servers)
    started = time.perf_counter()
    running: dict[int, tuple[subprocess.Popen[bytes], Sequence[str]]] = {}
    waiting, peak = list(commands), 0
    while waiting or running:
        while waiting and len(running) < at_once:
            command = waiting.pop(0)
            process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL)
            running[process.pid] = (process, command)
        pid, status, usage = os.wait4(-1, 0)
        process, command = running.pop(pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command[:4])} … ended with {process.returncode}")
        peak = max(peak, usage.ru_maxrss * 1024)
        spent += usage.ru_utime + usage.ru_stime
    return Timed(time.perf_counter() - started, peak, spent, cpu_of(servers) - served)


def cpu_of(servers: Sequence[int]) -> float:
    """Seconds of CPU that these processes have used so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in servers]
    return sum(int(user) + int(system) for user, system in (f[11:13] for f in fields)) / os.sysconf("SC_CLK_TCK")


def settle(scratch: Path, warm_bytes: int) -> None:
    """Write back what waits, and pass as much through the page cache as the next step will.

    A virtual machine gives free pages back to its host and pays for each again, and the first contender would pay. What
    warms them must leave them as a removed file does: memory that is mapped, touched and freed goes back to the host in
    large blocks, and the next one to write a file takes cold pages (docs/storage.md has the experiment).
    """
    os.sync()
    piece = bytes(WARM_STEP_BYTES)
    with tempfile.TemporaryFile(dir=scratch, buffering=0) as file:
        for _ in range(0, warm_bytes, WARM_STEP_BYTES):
            file.write(piece)


def wait_until_idle(servers: Sequence[int]) -> Timed:
    """Wait until these processes have used next to no CPU for a moment; what they used and how long it took.

    A server that goes on with work after its responses would slow the next contender. A figure of its own.
    """
    started, used = time.perf_counter(), cpu_of(servers)
    last_cpu, still = used, started
    while (now := time.perf_counter()) - still < IDLE_SECONDS and now - started < IDLE_LIMIT_SECONDS:
        time.sleep(IDLE_SECONDS / 10)
        if (spent := cpu_of(servers)) > last_cpu + IDLE_SHARE * IDLE_SECONDS:
            last_cpu, still = spent, time.perf_counter()
    return Timed(still - started, server_cpu_seconds=cpu_of(servers) - used)


def python_env(scratch: Path) -> dict[str, str]:
    """Python programs find their bytecode, as installed ones do, whatever the environment of the benchmark says."""
    return {"PYTHONPYCACHEPREFIX": str(scratch / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}


@dataclass
class Ours:
    """The command line against a server of ours."""

    url: str
    token: str
    pid: int
    scratch: Path
    servers: Sequence[int] = ()
    env: dict[str, str] = field(default_factory=dict)

    def push_fleet(self, folders: Sequence[Path]) -> Timed:
        return self._run(["push-all", str(folders[0].parent), _space(folders), "--base", _adapters.BASE, "--json"])

    def pull_fleet(self, folders: Sequence[Path]) -> Timed:
        with self._dest() as dest:
            space = _space(folders)
            return self._run(["pull-all", _adapters.BASE, str(dest), "--namespace", space, "--json"])

    def push(self, folder: Path) -> Timed:
        return self._run(["push", str(folder), f"one/{folder.name}", "--base", _adapters.BASE, "--json"])

    def pull(self, folder: Path) -> Timed:
        with self._dest() as dest:
            return self._run(["pull", f"one/{folder.name}", str(dest / folder.name), "--json"])

    def server_peak_bytes(self) -> int:
        """The largest resident size of the server so far."""
        line = next(x for x in Path(f"/proc/{self.pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def _run(self, arguments: Sequence[str]) -> Timed:
        # What a client remembers of a registry's log must not be that of an earlier one on the same port.
        home = {"XDG_CONFIG_HOME": str(self.scratch / f"config-{self.pid}")}
        env = {"ADAPTER_REGISTRY": self.url, "ADAPTER_TOKEN": self.token, **home}
        env |= {**python_env(self.scratch), **self.env}
        return timed([[*ADAPTER, *arguments]], self.servers, env=env)

    @contextlib.contextmanager
    def _dest(self) -> Iterator[Path]:
        """A new destination and a new cache on the same file system: everything is fetched."""
        root = self.scratch / uuid.uuid4().hex
        self.env["XDG_CACHE_HOME"] = str(root / "cache")
        yield root / "dest"
        shutil.rmtree(root)


def _space(folders: Sequence[Path]) -> str:
    """The namespace of a fleet: one for each folder of folders."""
    return f"{SPACE}-{folders[0].parent.name}"


@contextlib.contextmanager
def ours(scratch: Path, env: Mapping[str, str], store: Sequence[int] = ()) -> Iterator[Ours]:
    """A server with an empty registry that knows the base. `store`: the processes of the S3 store behind it."""
    data = scratch / f"data-{uuid.uuid4().hex[:8]}"
    command = [*ADAPTER, "serve", "--port", "0", "--data", str(data), "--json"]
    whole = {**os.environ, **python_env(scratch), **env}
    server = subprocess.Popen(command, env=whole, stdout=subprocess.PIPE, text=True)
    try:
        if server.stdout is None:
            raise RuntimeError("the server has no output")
        announced = json.loads(server.stdout.readline())
        folder = _adapters.write_base(scratch / f"base-{data.name}")
        with Registry(announced["url"], announced["token"]) as registry:
            spec = base_folder.base_spec_from(folder, _adapters.BASE)
            registry.add_base(BaseAdd(spec=spec[0] if isinstance(spec, tuple) else spec))
        yield Ours(announced["url"], announced["token"], server.pid, scratch, (server.pid, *store))
    finally:
        _end(server)
        shutil.rmtree(data, ignore_errors=True)


@dataclass
class Oras:
    """The oras command against a distribution registry. `at_once` is how many adapters move at a time."""

    address: str
    scratch: Path
    servers: Sequence[int] = ()
    at_once: int = 1

    def push_fleet(self, folders: Sequence[Path]) -> Timed:
        return timed([self._push(folder) for folder in folders], self.servers, self.at_once)

    def pull_fleet(self, folders: Sequence[Path]) -> Timed:
        dest = self.scratch / uuid.uuid4().hex
        try:
            pulls = [self._pull(folder, dest / folder.name) for folder in folders]
            return timed(pulls, self.servers, self.at_once)
        finally:
            shutil.rmtree(dest)

    def push(self, folder: Path) -> Timed:
        return self.push_fleet([folder])

    def pull(self, folder: Path) -> Timed:
        return self.pull_fleet([folder])

    def _push(self, folder: Path) -> list[str]:
        files = [f"{path.name}:application/octet-stream" for path in sorted(folder.iterdir())]
        script = 'cd "$1" && shift && exec oras push --plain-http --no-tty "$@"'
        return ["sh", "-c", script, "sh", str(folder), f"{self.address}/{SPACE}/{folder.name}:main", *files]

    def _pull(self, folder: Path, dest: Path) -> list[str]:
        return [
            "oras",
            "pull",
            "--plain-http",
            "--no-tty",
            "-o",
            str(dest),
            f"{self.address}/{SPACE}/{folder.name}:main",
        ]


@contextlib.contextmanager
def distribution(scratch: Path) -> Iterator[tuple[str, int] | None]:
    """Address and process of a docker-registry on local files; None where it or oras is not installed."""
    if not (shutil.which("docker-registry") and shutil.which("oras")):
        yield None
        return
    root = scratch / "distribution"
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    scratch.joinpath("distribution.yml").write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {root}}}, cache: {{blobdescriptor: inmemory}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    command = ["docker-registry", "serve", str(scratch / "distribution.yml")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        host, _, port = address.partition(":")
        deadline = time.monotonic() + SERVER_LIMIT_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("docker-registry does not respond")
            time.sleep(0.05)
        yield address, server.pid
    finally:
        _end(server)


@dataclass
class Plain:
    """A client that copies files to and from the bucket and does nothing else (benchmarks/_plain.py)."""

    kind: str
    endpoint: str
    bucket: str
    scratch: Path
    servers: Sequence[int] = ()

    def push_fleet(self, folders: Sequence[Path]) -> Timed:
        return self._run("put", [str(folder) for folder in folders])

    def pull_fleet(self, folders: Sequence[Path]) -> Timed:
        dest = self.scratch / uuid.uuid4().hex
        try:
            return self._run("get", [str(dest), *(folder.name for folder in folders)])
        finally:
            shutil.rmtree(dest)

    def push(self, folder: Path) -> Timed:
        return self.push_fleet([folder])

    def pull(self, folder: Path) -> Timed:
        return self.pull_fleet([folder])

    def _run(self, verb: str, arguments: Sequence[str]) -> Timed:
        start = [sys.executable, "-m", "benchmarks._plain", self.kind, self.endpoint, self.bucket]
        return timed([[*start, verb, *arguments]], self.servers, env=python_env(self.scratch))


def _end(server: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(SERVER_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
