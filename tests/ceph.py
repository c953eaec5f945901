"""A throw-away Ceph cluster of one machine with its S3 gateway, and the S3 tests run against it: `make test-ceph`.

- One monitor, one manager, one OSD that keeps objects in memory, one gateway: enough to have RGW's own responses.
- Debian's packages radosgw, ceph-mon, ceph-mgr, ceph-osd and ceph-common. Without them the run says so and skips.
- Everything listens on loopback, and ends with the process that started it.

Example
    $ python -m tests.ceph          # or with arguments for pytest: python -m tests.ceph -k push
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests import processes
from tests.services import ObjectStore

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "ceph-authtool", "monmaptool", "radosgw-admin", "ceph")
SUITES = (
    "tests/contract/test_blob_store.py",
    "tests/server/test_s3_forgery.py",
    "tests/server/test_s3_push.py",
    "tests/server/test_s3_maintenance.py",
)
MEMORY_BYTES = 4 << 30
COMMAND_SECONDS = 120
CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "client.rgw.a": {"mon": "allow rw", "osd": "allow rwx"},
    "mgr.x": {"mon": "allow profile mgr"},
    "osd.0": {"mon": "allow *", "osd": "allow *"},
}
CONFIG = """\
[global]
fsid = {cluster}
mon host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_old}]
mon initial members = a
public addr = 127.0.0.1
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon data = {folder}/mon
mgr data = {folder}/mgr
osd data = {folder}/osd
osd objectstore = memstore
osd class dir = {classes}
memstore device bytes = {memory}
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file = {folder}/$name.pid
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{gateway}
"""


@contextlib.contextmanager
def ceph() -> Iterator[ObjectStore]:
    """A running gateway and one user's keys. `CannotStart` when a program does not come up."""
    with processes.folder("registry-ceph-") as folder, contextlib.ExitStack() as stack:
        cluster, gateway = str(uuid.uuid4()), processes.free_port()
        _configure(folder, cluster, gateway)
        for name in ("mon", "mgr", "osd"):
            (folder / name).mkdir()
        _run(folder, "ceph-mon", "--mkfs", "-i", "a", "--monmap", folder / "monmap", "--keyring", folder / "keyring")
        _start(stack, folder, "ceph-mon", "-i", "a")
        _start(stack, folder, "ceph-mgr", "-i", "x")
        osd = str(uuid.uuid4())
        _run(folder, "ceph", "osd", "new", osd)
        _run(folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        _start(stack, folder, "ceph-osd", "-i", "0")
        process = _start(stack, folder, "radosgw", "-n", "client.rgw.a")
        endpoint = f"http://127.0.0.1:{gateway}"
        processes.wait_until(lambda: _responds(endpoint), process, folder / "radosgw")
        keys = ("writer", secrets.token_hex(16))
        _run(folder, "radosgw-admin", "user", "create", "--uid=writer", "--display-name=writer",
             f"--access-key={keys[0]}", f"--secret={keys[1]}")  # fmt: skip
        yield ObjectStore(endpoint, *keys)


def _configure(folder: Path, cluster: str, gateway: int) -> None:
    mon, mon_old = processes.free_port(), processes.free_port()
    classes = next(Path("/usr/lib").glob("*/rados-classes"), Path("/usr/lib/rados-classes"))
    (folder / "ceph.conf").write_text(
        CONFIG.format(
            cluster=cluster,
            mon=mon,
            mon_old=mon_old,
            gateway=gateway,
            folder=folder,
            classes=classes,
            memory=MEMORY_BYTES,
        )
    )
    for number, (name, capabilities) in enumerate(CAPABILITIES.items()):
        words = [word for pair in capabilities.items() for word in ("--cap", *pair)]
        create = () if number else ("--create-keyring",)
        _run(folder, "ceph-authtool", *create, folder / "keyring", "--gen-key", "-n", name, *words)
    address = f"[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_old}]"
    _run(folder, "monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, folder / "monmap")


def _run(folder: Path, program: str, *words: object) -> None:
    configured = () if program in ("ceph-authtool", "monmaptool") else ("-c", folder / "ceph.conf")
    command = [program, *configured, *words]
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    if done.returncode:
        raise processes.CannotStart(f"{program} ended with {done.returncode}: {done.stderr[-2000:]}")


def _start(stack: contextlib.ExitStack, folder: Path, program: str, *words: str) -> subprocess.Popen[bytes]:
    (folder / program).mkdir()
    command = [program, "-f", "-c", folder / "ceph.conf", *words]
    return stack.enter_context(processes.running(command, folder / program, stop=signal.SIGKILL))


def _responds(endpoint: str) -> bool:
    try:
        return bool(urllib.request.urlopen(endpoint, timeout=2).status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main(arguments: list[str]) -> int:
    """Run the S3 suites against the cluster; 0 with a sentence when Ceph is not installed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = "radosgw ceph-mon ceph-mgr ceph-osd ceph-common"
        print(f"skipped {len(SUITES)} test files: not installed: {', '.join(missing)} (apt-get install {packages})")
        return 0
    with ceph() as store:
        environment = {
            "TEST_S3_ENDPOINT": store.endpoint,
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
        }
        command = [sys.executable, "-m", "pytest", "-q", "-rs", *SUITES, *arguments]
        return subprocess.run(command, env=os.environ | environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
