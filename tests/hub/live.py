"""`LiveServer`: a server process, its S3 store on the same host name behind a proxy, and what was pushed.

    live.push("acme/support", files)              a version, through the API
    live.python(script, folder)                   the output of a fresh Python with HF_ENDPOINT and HF_TOKEN set
    live.http("unknown; hf_hub/1.33.0")           a client of our own that says to be another one

Invariants
- Clients reach the store only through the proxy; `end` fails when it ever saw a token of ours.
- Clients start without what this machine's own settings and caches would give them.

Example
    with live.running(object_store, bucket, folder) as made:
        made.push("acme/support", samples.lora(samples.llama()))
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from registry.api.bases import BaseAdd
from registry.api.transfer import PushRequest
from registry.bases import BaseSpec
from registry.client.registry import Registry
from registry.digest import Digest
from registry.names import AdapterName
from registry.versions.manifest import BaseRef, Descriptor, Manifest
from tests import samples
from tests.base_specs import spec_of
from tests.bulk import commit_push, plan_push
from tests.faults.servers import Server
from tests.harness import media_type, upload
from tests.recording_proxy import RecordingProxy

NAME = "acme/support"
CARD = b"# An adapter\n"
NESTED = "part/one/README.md"
CLIENT_SECONDS = 300


@dataclass
class LiveServer:
    server: Server
    proxy: RecordingProxy
    registry: Registry
    base: BaseSpec
    files: list[dict[str, bytes]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    """Of `NAME`, from its first version on."""
    digest_of: dict[str, str] = field(default_factory=dict)
    """Other adapters that a test has pushed, at their newest version."""

    @property
    def commits(self) -> list[str]:
        """What the dialect calls the versions of `NAME`."""
        return [digest.removeprefix("sha256:")[:40] for digest in self.digests]

    def push(self, name: str, files: Mapping[str, bytes], base: BaseSpec | None = None) -> str:
        """The digest of a new version."""
        described = [
            Descriptor(path=path, media_type=media_type(path), digest=Digest.of(data), size_bytes=len(data))
            for path, data in files.items()
        ]
        spec = base or self.base
        manifest = Manifest.build(BaseRef(name=spec.name, fingerprint=spec.fingerprint), described)
        plan = plan_push(self.registry, AdapterName.parse(name), PushRequest(manifest=manifest))
        upload(self.registry, plan, files)
        return commit_push(self.registry, plan.push_id).version.digest

    def push_support(self) -> None:
        """One more version of `NAME`, with a file in a folder."""
        files = {**samples.lora(samples.llama(), seed=len(self.files) + 70), "README.md": CARD, NESTED: CARD * 2}
        self.digests.append(self.push(NAME, files))
        self.files.append(files)

    # ------------------------------------------------------------ clients
    def run(self, command: Sequence[str | Path], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
        """A client program in `folder`, which knows HF_ENDPOINT and HF_TOKEN and nothing else of the Hub."""
        return run_client(command, folder, **{"HF_ENDPOINT": self.server.url, "HF_TOKEN": self.server.token} | more)

    def python(self, script: str, folder: Path) -> Any:
        """What a fresh Python of these tests prints on its last line, which is JSON."""
        return last_line(self.run([sys.executable, "-c", script], folder))

    def http(self, agent: str = "x", **headers: str) -> httpx.Client:
        default_headers = {"Authorization": f"Bearer {self.server.token}", "User-Agent": agent, **headers}
        return httpx.Client(base_url=self.server.url, headers=default_headers)

    def xet_uploads(self) -> int:
        """How many shards the server has received."""
        log = self.server.log
        return log.read_text().count("/v1/shards status=200") if log is not None else 0

    def no_token_left_home(self) -> None:
        """Fails when the store ever saw a token of ours, in a header or in a target."""
        leaked = [head for head in self.proxy.heads if "authorization:" in head.lower()]
        assert not leaked, f"{len(leaked)} requests carried a token to the store, such as:\n{leaked[0]}"
        assert self.proxy.sightings == 0


def run_client(command: Sequence[str | Path], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A client program in `folder`, without what this machine has set for the Hub, and with an empty cache."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AWS_", "PYTHON", "REGISTRY_"))}
    environment |= {"HF_HOME": str(folder / "home")}
    return subprocess.run(
        [str(word) for word in command], env=environment | more, cwd=folder, capture_output=True, text=True,
        timeout=CLIENT_SECONDS,
    )  # fmt: skip


def last_line(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def running(object_store: str, bucket: str, folder: Path, *, store_host: str = "127.0.0.1") -> Iterator[LiveServer]:
    """A server with two versions of `NAME`: `canary` is the first, `main` the second.

    Clients see the store at `store_host`; the server itself has the host name 127.0.0.1.
    """
    with RecordingProxy(object_store) as proxy:
        environment = {
            "REGISTRY_DATA": str(folder), "REGISTRY_S3_ENDPOINT": object_store,
            "REGISTRY_BLOBS": f"s3://{bucket}/{uuid.uuid4().hex}",
            "REGISTRY_S3_PUBLIC_ENDPOINT": proxy.endpoint.replace("127.0.0.1", store_host),
            **{key: os.environ[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")},
        }  # fmt: skip
        with (
            Server(environment, folder / "server.log").running() as server,
            Registry(server.url, server.token) as registry,
        ):
            proxy.watch(server.token)
            live = LiveServer(server, proxy, registry, spec_of(samples.llama()))
            registry.add_base(BaseAdd(spec=live.base))
            live.push_support()
            live.push_support()
            registry.promote(NAME, "canary", "1", generation=0)
            yield live
            live.no_token_left_home()
