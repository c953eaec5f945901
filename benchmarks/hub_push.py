"""`make bench-hub-push`: pushes of the newest Hub client by Xet, beside a stand-in that only hashes and stores.

    push_time_vs_stand_in       seconds for 10 adapters of 30 MB by `upload_folder`, ours / the stand-in's, medians
    server_cpu_seconds_per_gb   of this registry, with evaluation; and of the stand-in
    peak_mb_of_100_mb, of_1_gb  memory of the server's processes above what it has at rest, for one file

The client is one process for all pushes to a server; hf-xet chunks and hashes in it, which is most of the time of the
stand-in. The store is a folder. Servers take turns, BENCH_ROUNDS (3) rounds. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import _adapters
from registry.api.bases import BaseAdd
from registry.client.local.base_folder import base_spec_from
from registry.client.registry import Registry
from tests.faults.servers import Server
from tests.processes import free_port

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
ADAPTERS = 10
ADAPTER_BYTES = 30 * 10**6
CLIENT = """
import json, sys, time
from huggingface_hub import HfApi
api, seconds = HfApi(), []
for name, folder in json.loads(sys.argv[1]):
    api.create_repo(name, exist_ok=True)
    started = time.monotonic()
    api.upload_folder(repo_id=name, folder_path=folder)
    seconds.append(time.monotonic() - started)
print(json.dumps(sum(seconds)))
"""


@dataclass
class Target:
    """A server: where it is, the token of its client, and the id of its process."""

    url: str
    token: str
    pid: int

    def push(self, scratch: Path, folders: list[Path]) -> float:
        """Push each folder to a repository of its own; return the seconds of the uploads."""
        names = [(f"acme/a{uuid.uuid4().hex[:12]}", str(folder)) for folder in folders]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(scratch / "home")}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-c", CLIENT, json.dumps(names)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return float(json.loads(done.stdout.splitlines()[-1]))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self) -> float:
        """The most memory since `reset_peak`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1000

    def reset_peak(self) -> float:
        """Forget the peak; return the memory of now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.peak_mb()


@contextlib.contextmanager
def registry(scratch: Path) -> Iterator[Target]:
    server = Server({"REGISTRY_DATA": str(scratch / "data")})
    with server.running(), Registry(server.url, server.token) as client:
        spec, _ = base_spec_from(_adapters.write_base(scratch / "base"), _adapters.BASE)
        client.add_base(BaseAdd(spec=spec))
        yield Target(server.url, server.token, server.pid)


@contextlib.contextmanager
def stand_in(scratch: Path) -> Iterator[Target]:
    port, folder = free_port(), scratch / "stored"
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks._hub_stand_in", str(port), str(folder)]
    with subprocess.Popen(command) as process:
        try:
            time.sleep(1)
            yield Target(f"http://127.0.0.1:{port}", "x", process.pid)
        finally:
            process.kill()


def peak_of(target: Target, scratch: Path, size_bytes: int) -> float:
    """Push one file of this size, as a draft; return the memory that it took, in MB."""
    folder = scratch / f"large-{size_bytes}"
    folder.mkdir()
    with open(folder / "adapter_model.safetensors", "wb") as file:
        spans = {"data_offsets": [0, size_bytes], "dtype": "U8", "shape": [size_bytes]}
        header = json.dumps({"x": spans}).encode()
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(size_bytes // 10**6):
            file.write(os.urandom(10**6))
    at_rest = target.reset_peak()
    target.push(scratch, [folder])
    return target.peak_mb() - at_rest


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        opened = {"registry": registry(scratch), "stand_in": stand_in(scratch)}
        targets = {name: stack.enter_context(target) for name, target in opened.items()}
        seconds: dict[str, list[float]] = {name: [] for name in targets}
        cpu = dict.fromkeys(targets, 0.0)
        for number in range(ROUNDS):
            folders = [scratch / f"{number}-{at}" for at in range(ADAPTERS)]
            for at, each in enumerate(folders):
                _adapters.make(each, ADAPTER_BYTES, seed=number * ADAPTERS + at)
            for name, target in targets.items():
                before = target.cpu_seconds()
                seconds[name].append(target.push(scratch, folders))
                cpu[name] += target.cpu_seconds() - before
                print(f"{name}: {seconds[name][-1]:.2f} s")
        gigabytes = ROUNDS * ADAPTERS * ADAPTER_BYTES / 10**9
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        result = {
            "push_time_vs_stand_in": round(medians["registry"] / medians["stand_in"], 2),
            "push_spread": round(max(seconds["registry"]) / min(seconds["registry"]), 2),
            **{f"{name}_seconds": round(value, 2) for name, value in medians.items()},
            **{f"{name}_cpu_seconds_per_gb": round(value / gigabytes, 2) for name, value in cpu.items()},
        }
        for label, size_bytes in (("100_mb", 10**8), ("1_gb", 10**9)):
            result[f"peak_mb_of_{label}"] = round(peak_of(targets["registry"], scratch, size_bytes))
        print(json.dumps(result))


if __name__ == "__main__":
    main()
