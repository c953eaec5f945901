"""Two namespaces with an adapter each and a subject in each role, and requests with any token."""

from __future__ import annotations

from typing import Any

import httpx

from registry.api.access import TokenCreate
from registry.client.registry import Registry
from tests.harness import URL, Harness

ROLES = ("reader", "pusher", "promoter", "owner")
EVERY_SCOPE = ["admin", "promote", "pull", "push", "work"]


class UnclosedTransport(httpx.BaseTransport):
    """The harness's transport, which stays open when one client closes."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._harness.transport.handle_request(request)


def send(harness: Harness, method: str, path: str, secret: str = "", **rest: Any) -> httpx.Response:
    """Send a request without the retries and errors of the registry's client."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    headers |= rest.pop("headers", {})
    with httpx.Client(transport=UnclosedTransport(harness), base_url=URL) as client:
        return client.request(method, path, headers=headers, **rest)


def of_subject(
    harness: Harness, subject: str, scopes: list[str] | None = None, namespaces: list[str] | None = None
) -> str:
    """The secret of a new token of this subject."""
    request = TokenCreate(name=subject, scopes=scopes or EVERY_SCOPE, namespaces=namespaces or ["*"], subject=subject)
    return harness.admin.create_token(request).secret


class Tenants:
    """The namespaces `acme` and `globex`. In `acme` there is one subject per role, with a token of all scopes."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        harness.add_base()
        harness.admin.create_namespace("acme", owner="owner@acme")
        harness.admin.create_namespace("globex", owner="owner@globex")
        for role in ROLES[:3]:
            harness.admin.grant_role("acme", f"{role}@acme", role)
        harness.admin.grant_role("acme", "mover@acme", "pusher", aliases=["canary"])
        self.files = harness.files()
        harness.push("acme/support", self.files)
        harness.push("globex/secret")
        self._secrets: dict[str, str] = {}

    def secret(self, who: str) -> str:
        """The secret of a subject; a name without `@` is a subject of `acme`."""
        subject = who if "@" in who else f"{who}@acme"
        if subject not in self._secrets:
            self._secrets[subject] = of_subject(self.harness, subject)
        return self._secrets[subject]

    def client(self, who: str) -> Registry:
        return self.harness.client(self.secret(who))
