"""docs/team-server.md, typed as it stands: compose, TLS, PostgreSQL, S3, a gate, a worker on a real model, a promotion.

`docker compose` is podman-compose here, images of services come from Debian packages, and the client is the agent's
image on the network of the services, which sees the registry by its name.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.deploy.containers import Podman
from tests.import_table import ROOT
from tests.worker import models

pytestmark = pytest.mark.deep
HOST = "registry.example.org"
PRINT_KNOWN_HOSTS = f"""
import socket
for host in ("database", "bucket", "{HOST}"):
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        continue
    print(host)
"""
PAGE = (ROOT / "docs/team-server.md").read_text()


@dataclass
class Reader:
    """Somebody who types what the page says, in the folder `deploy` of a checkout and on a machine with the command."""

    podman: Podman
    images: dict[str, str]
    services: dict[str, str]
    checkout: Path
    client: Path
    printed: dict[str, str] = field(default_factory=dict)

    def type(self, line: str) -> None:
        """Run a line of the page and keep what it prints under it."""
        words = shlex.split(line, comments=True)
        output = ""
        if ">" in words:
            output = words[words.index(">") + 1]
            words = words[: words.index(">")]
        if words[:2] == ["docker", "compose"]:
            printed = self.compose(*words[2:])
        elif words[0] == "adapter":
            printed = self.adapter(*words[1:])
        else:
            printed = self.podman.command(*words, cwd=self.checkout / "deploy")
        if output:
            (self.client / output).write_text(printed)
        self.printed[line] = printed

    def compose(self, *words: str) -> str:
        """podman-compose; `--build` is left out, since its builds would not find packages as pip here does."""
        typed = [word for word in words if word != "--build"]
        if "exec" in typed:
            typed.insert(typed.index("exec") + 1, "-T")
        return self.podman.command("podman-compose", *typed, cwd=self.checkout / "deploy", environment=self.services)

    def adapter(self, *words: str) -> str:
        """The command on a machine beside the servers, which trusts their certificate authority."""
        options = [
            "--rm", "--interactive", "--network=adapter-registry_default", f"--volume={self.client}:/client",
            "--workdir=/client", "--env=SSL_CERT_FILE=/client/ca.pem", "--env=HOME=/client/home",
        ]  # fmt: skip
        token = self.printed["token"] if words[0] == "login" else ""
        return self.podman.run("run", *options, self.images["agent"], *words, stdin=token)


@pytest.fixture
def reader(podman: Podman, images: dict[str, str], services: dict[str, str], tmp_path: Path) -> Iterator[Reader]:
    checkout, client = tmp_path / "checkout", tmp_path / "client"
    shutil.copytree(ROOT / "deploy", checkout / "deploy", ignore=shutil.ignore_patterns(".env"))
    base = models.base(client / "models/SmolLM2-135M-Instruct")
    config = models.adapter(base, client / "out/checkpoint-200") / "adapter_config.json"
    fields = json.loads(config.read_text()) | {"base_model_name_or_path": f"HuggingFaceTB/{base.name}"}
    config.write_text(json.dumps(fields))
    (client / "home").mkdir()
    podman.command("chown", "-R", "10001", client)
    podman.command("chmod", "-R", "a+rX", tmp_path)
    tmp_path.parent.chmod(0o755)
    ports = {"HTTPS_PORT": "127.0.0.1:18443", "BUCKET_PORT": "127.0.0.1:18444"}
    reader = Reader(podman, images, services | ports, checkout, client)
    try:
        yield reader
    finally:
        for words in (("logs",), ("down", "--volumes")):
            command = ("podman-compose", "--profile", "worker", *words)
            podman.command(*command, cwd=checkout / "deploy", environment=reader.services, check=False)


def test_a_reader_of_the_page_has_a_server_that_promotes_what_a_worker_tested(reader: Reader) -> None:
    lines = re.findall(r"^    ((?:\./prepare|docker|adapter) .*)$", PAGE, re.MULTILINE)
    assert len(lines) > 14
    for line in lines:
        if "cat /data/admin.token" in line:  # what a person would type again
            reader.compose("exec", "server", "/bin/sh", "-c", "until test -e /data/admin.token; do sleep 0.2; done")
        if "--scale" not in line:
            reader.type(line)
        if line.startswith("./prepare"):
            _append(reader, CADDY_OPTIONS="local_certs")
        elif "cat /data/admin.token" in line:
            reader.printed["token"] = reader.printed[line]
        elif "token create gpu-1" in line:
            secret = re.search(r"lra_\w+", reader.printed[line])
            assert secret is not None
            settings = dict(re.findall(r"^(WORKER_BASE)=(.+)$", PAGE, re.MULTILINE))
            shutil.copytree(reader.client / "models", reader.checkout / "models")
            _append(
                reader, MODELS=str(reader.checkout / "models"), WORKER_TOKEN=secret[0],
                CA_FILE=str(reader.client / "ca.pem"), **settings,
            )  # fmt: skip
    worker = ("podman", "exec", "adapter-registry_worker_1", "python", "-c", PRINT_KNOWN_HOSTS)
    assert reader.podman.command(*worker).split() == [HOST], "the worker finds the database or the store"
    report = json.loads(reader.adapter("show", "acme/support:prod", "--json"))
    assert report["number"] == 1
    assert {verdict["check"]: verdict["outcome"] for verdict in report["verdicts"]}["smoke"] == "pass"
    reader.adapter("pull", "acme/support:prod", "served")
    pulled = (reader.client / "served/adapter_model.safetensors").read_bytes()
    assert pulled == (reader.client / "out/checkpoint-200/adapter_model.safetensors").read_bytes()


def _append(reader: Reader, **settings: str) -> None:
    with (reader.checkout / "deploy/.env").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in settings.items())
