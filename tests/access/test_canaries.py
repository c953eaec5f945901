"""Secrets are used wherever the registry takes one, and none appears in responses, logs, rows, the store or exports."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from registry.api.access import PublisherAdd, TokenCreate
from registry.api.audit.attestations import SignRequest
from registry.api.audit.webhooks import WebhookCreate
from registry.attestations import models
from registry.attestations.keys import PrivateKey
from registry.client.audit import Audit, export_log
from registry.errors import RegistryError
from registry.server.database import tables as database_tables
from tests.access.identity import ISSUER, Provider
from tests.harness import URL, Harness

pytestmark = pytest.mark.security

ID_LIKE = ("token", "rotated token", "exchanged token", "unknown token", "webhook")
"""Secrets that somebody may take for the id of what they are the secret of."""


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    folder = tmp_path / "provider"
    folder.mkdir()
    return Provider(folder)


@pytest.fixture
def harness(database_url: str, provider: Provider) -> Iterator[Harness]:
    with Harness(database_url, issuers=provider.settings) as harness:
        harness.add_base()
        yield harness


def use_secrets(harness: Harness, provider: Provider) -> dict[str, str]:
    """Name → secret. Each was used, rightly and wrongly, and each way of making one was gone twice with one key."""
    audit = Audit(harness.admin)
    harness.push("acme/support")
    harness.admin.add_publisher("acme/support", PublisherAdd(issuer=ISSUER, claims={"repository": "acme/train"}))
    created = harness.admin.create_token(TokenCreate(name="ci", scopes=["push", "pull"]))
    rotated = harness.admin.rotate_token(created.token.id, keep_seconds=60)
    assertion = provider.sign()
    exchanged = harness.client("").exchange_token(assertion, adapter="acme/support")
    hook = audit.create_webhook(WebhookCreate(url="https://93.184.216.34/in"))
    key = PrivateKey.of_seed(b"canary-of-a-private-signing-key!")
    bundle = models.sign("x", harness.admin.resolve("acme/support").manifest, key)
    audit.sign("acme/support", SignRequest(bundle=bundle, public_key=key.public.pem))
    harness.push("acme/support", by=harness.client(rotated.secret))
    seed = harness.app.state.audit_log.keys.signer.seed
    return {
        "administrator": harness.secret, "token": created.secret, "rotated token": rotated.secret,
        "exchanged token": exchanged.secret, "identity token": assertion, "webhook": hook.secret,
        "log key": base64.b64encode(seed).decode(), "log key, hex": seed.hex(),
        "signing key": "canary-of-a-private-signing-key!", "unknown token": f"lra_{'canary' * 6}ab",
    }  # fmt: skip


def send_in_wrong_places(harness: Harness, secrets: dict[str, str]) -> list[str]:
    """Every response to requests that carry a secret where none belongs."""
    heard = []
    with httpx.Client(transport=harness.transport, base_url=URL) as raw:
        for secret in secrets.values():
            for headers in (
                {"Authorization": f"Bearer {secret}x"},
                {"Authorization": f"Basic {base64.b64encode(f'u:{secret}'.encode()).decode()}"},
                {"Authorization": secret.replace("\n", "")},
            ):
                heard.append(raw.get("/api/v1/whoami", headers=headers).text)
            body = json.dumps({"assertion": f"{secret}x", "adapter": "acme/support"})
            heard.append(raw.post("/api/v1/tokens/exchange", content=body).text)
    for again in (
        lambda: harness.client("").exchange_token(secrets["identity token"], adapter="acme/support"),
        harness.client("x").whoami,
    ):
        with contextlib.suppress(RegistryError):
            heard.append(str(again()))
    heard += [harness.admin.whoami().model_dump_json(), *(t.model_dump_json() for t in harness.admin.tokens().items)]
    heard += [hook.model_dump_json() for hook in Audit(harness.admin).webhooks().items]
    heard += [event.model_dump_json() for event in Audit(harness.admin).events()]
    return heard


def send_as_ids(harness: Harness, secrets: dict[str, str]) -> None:
    """Whoever asks is told what they asked for, and nobody else is."""
    logger = logging.getLogger("httpx")  # this test's own client tells which URLs it asks for
    logger.disabled = True
    for name, path in itertools.product(ID_LIKE, ("tokens", "webhooks")):
        with contextlib.suppress(RegistryError):
            harness.admin.connection.send("DELETE", f"/{path}/{quote(secrets[name], safe='')}")
    logger.disabled = False


def at_rest(harness: Harness) -> str:
    """Every row of every table and every byte of the store."""
    with harness.session() as session:
        tables = database_tables.metadata.sorted_tables
        stored = [
            f"{table.name}: {tuple(row)}" for table in tables for row in session.connection().execute(table.select())
        ]
    blobs = [harness.blobs.read(stat.key, 0, stat.size_bytes) for stat in harness.blobs.list("")]
    return "\n".join([*stored, *(data.decode(errors="replace") for data in blobs)])


def test_no_planted_secret_is_in_a_response_a_log_a_row_the_store_or_an_export(
    harness: Harness, provider: Provider, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = use_secrets(harness, provider)
    send_as_ids(harness, secrets)
    heard = send_in_wrong_places(harness, secrets)
    harness.transport.settle()
    export_log(Audit(harness.admin), tmp_path / "exported")
    exported = "\n".join(
        path.read_text(errors="replace") for path in (tmp_path / "exported").rglob("*") if path.is_file()
    )
    places = {"responses": "\n".join(heard), "logs": caplog.text, "at rest": at_rest(harness), "export": exported}
    assert all(len(text) > 100 for text in places.values()), "each place was looked into"
    leaks = [(name, where) for name, secret in secrets.items() for where, text in places.items() if secret in text]
    assert leaks == []
    assert "acme/support" in places["at rest"]
    assert "acme/support" in places["export"]
