"""A client that a common generator writes from the served document pushes, promotes, resolves and pulls."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.digest import Digest
from registry.versions.manifest import BaseRef, Descriptor, Manifest
from tests import samples
from tests.base_specs import spec_of
from tests.bulk import commit_body, push_body
from tests.faults.servers import Server
from tests.harness import media_type
from tests.import_table import ROOT

PACKAGE = "generated_registry_client"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server({"REGISTRY_DATA": str(tmp_path / "data")}).running() as running:
        yield running


@pytest.fixture
def generated(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the generated package, which can be imported."""
    document, config = tmp_path / "openapi.json", tmp_path / "config.yaml"
    document.write_bytes(httpx.get(f"{server.url}/openapi.json").raise_for_status().content)
    config.write_text("post_hooks: []\n")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning", "--meta", "none"]
    command += ["--path", str(document), "--config", str(config), "--output-path", str(tmp_path / PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / PACKAGE


def operation(tag: str, name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.api.{tag}.{name}")


def model(name: str) -> Any:
    return getattr(importlib.import_module(f"{PACKAGE}.models"), name)


@pytest.mark.filterwarnings("ignore:invalid decimal literal:SyntaxWarning")  # code of the generator
@pytest.mark.usefixtures("generated")
def test_a_generated_client_pushes_promotes_resolves_and_pulls(server: Server) -> None:
    client = importlib.import_module(PACKAGE).AuthenticatedClient(
        base_url=server.url, token=server.token, raise_on_unexpected_status=True
    )
    base = samples.llama()
    spec = spec_of(base)
    files = samples.lora(base)
    add = model("BaseAdd").from_dict({"spec": spec.model_dump(mode="json")})
    assert operation("bases", "add_base").sync(client=client, body=add).name == base.name

    described = [
        Descriptor(path=path, media_type=media_type(path), digest=Digest.of(data), size_bytes=len(data))
        for path, data in files.items()
    ]
    manifest = Manifest.build(BaseRef(name=spec.name, fingerprint=spec.fingerprint), described)
    request = model("BulkPushRequest").from_dict(push_body("acme/support", manifest.model_dump(mode="json")))
    plan = operation("transfer", "plan_pushes").sync(client=client, body=request).items[0].result
    blobs = {str(Digest.of(data)): data for data in files.values()}
    assert {upload.digest for upload in plan.uploads} == set(blobs)
    for upload in plan.uploads:  # links are used as they are
        assert httpx.put(server.url + upload.url, content=blobs[upload.digest]).status_code == 204
    request = model("BulkCommitRequest").from_dict(commit_body(plan.push_id))
    pushed = operation("transfer", "commit_pushes").sync(client=client, body=request).items[0].result
    assert (pushed.created, pushed.version.number) == (True, 1)

    promote = operation("adapters", "promote_alias")
    move = model("PromoteRequest")(version="1")
    refused = promote.sync("acme", "support", "canary", client=client, body=move)
    assert (type(refused).__name__, refused.code, refused.status) == ("Problem", "PRECONDITION_REQUIRED", 428)
    moved = promote.sync("acme", "support", "canary", client=client, body=move, if_match='"0"')
    assert (moved.alias, moved.number, moved.generation) == ("canary", 1, 1)

    resolved = operation("adapters", "resolve_version").sync("acme", "support", "canary", client=client)
    assert resolved.digest == pushed.version.digest
    pulled = {
        file.path: operation("transfer", "read_file").sync("acme", "support", "canary", file.path, client=client)
        for file in resolved.files
    }
    assert {path: file.payload.read() for path, file in pulled.items()} == files
    assert run_example_of_the_page(server) == pushed.version.digest


def run_example_of_the_page(server: Server) -> str:
    """Run the Python block of docs/openapi.md and return what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/openapi.md").read_text(), re.DOTALL)
    for shown, actual in {
        "registry_client": PACKAGE, "https://registry.example": server.url, '"…"': repr(server.token),
        '"canary"': '"beta"', '"3"': '"1"',
    }.items():  # fmt: skip
        assert shown in code
        code = code.replace(shown, actual)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/openapi.md", "exec"), {})
    return printed.getvalue().strip()
