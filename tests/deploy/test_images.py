"""The images: small additions to their base, not root, nothing written, no program that builds."""

from __future__ import annotations

import json

import pytest

from tests.deploy.containers import Podman

pytestmark = pytest.mark.deep
HARDENED = ("--rm", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
NOT_SEARCHED = " -o ".join(f"-path {path}" for path in ("/proc", "/dev", "/tmp", "/var/tmp"))
FIND_WRITABLE = f"find / -xdev \\( {NOT_SEARCHED} \\) -prune -o -writable -not -type l -print"


@pytest.mark.parametrize("target", ["server", "agent", "worker"])
def test_an_image_runs_the_command_as_a_user_with_nothing_to_write(
    podman: Podman, images: dict[str, str], target: str
) -> None:
    printed = podman.run("run", *HARDENED, images[target], "doctor", "--json", check=False)
    assert json.loads(printed)
    user = podman.run("run", *HARDENED, "--entrypoint=id", images[target], "--user")
    assert user.strip() == "10001"
    command = ("--entrypoint=sh", images[target], "-c", FIND_WRITABLE)
    writable = podman.run("run", *HARDENED, *command, check=False).split()
    assert [path for path in writable if not path.startswith(("/data", "/run/lock", "/var/lock"))] == []


def test_the_agent_has_no_server_and_the_server_no_torch(podman: Podman, images: dict[str, str]) -> None:
    for target, absent in (("agent", ("fastapi", "sqlmodel", "torch")), ("server", ("torch", "pytest"))):
        probe = f"import importlib.util as u; print([n for n in {absent!r} if u.find_spec(n)])"
        printed = podman.run("run", *HARDENED, "--entrypoint=python", images[target], "-c", probe)
        assert printed.strip() == "[]", target


def test_the_server_starts_on_a_volume_and_responds(podman: Podman, images: dict[str, str]) -> None:
    name = "test-server"
    podman.run("rm", "--force", "--volumes", name, check=False)
    podman.run("run", "--detach", "--name", name, *HARDENED[1:], "--tmpfs=/tmp", images["server"])
    try:
        probe = (
            "import time, urllib.request as u\n"
            "for _ in range(300):\n"
            "  try: print(u.urlopen('http://127.0.0.1:8080/readyz').status); break\n"
            "  except OSError: time.sleep(0.2)\n"
        )
        assert podman.run("exec", name, "python", "-c", probe).strip() == "200"
        podman.run("stop", "--time=30", name)
        assert json.loads(podman.run("inspect", name))[0]["State"]["ExitCode"] == 0, "SIGTERM ends the server in order"
    finally:
        podman.run("rm", "--force", "--volumes", name, check=False)
