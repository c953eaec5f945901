"""No secret is in the text of a value: texts of values end up in logs, errors and reports of crashes."""

from __future__ import annotations

import dataclasses
import email.message
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from registry.client.transport import HttpResponse
from tests.import_table import modules

SECRET = re.compile(r"(^|_)(secret|secrets|password|token|assertion|verifier|nonce|cookie|seed|private_key)$")
PRESIGNED = {
    "Direct.url",
    "FileLink.url",
    "HttpResponse.url",
    "Link.url",
    "PartLink.url",
    "Upload.url",
    "UploadPart.url",
}
"""Fields with presigned URLs: whoever has one reads or writes the bytes."""
NOT_SECRET = {
    "Operation.has_secret",
    "PageSessionRow.owns_token", "Settings.streams_per_token", "Settings.waits_per_token", "TokenCreated.token",
    "_State.of_token",
}  # fmt: skip
"""What has the name of a secret and is none."""
PACKAGES = (
    "cli",
    "registry.api",
    "registry.attestations",
    "registry.client",
    "registry.jobs",
    "registry.sdk",
    "registry.server",
    "registry.serving",
    "registry.tlog",
)


def secret_fields() -> Iterator[tuple[type, str]]:
    for name in modules():
        if name.startswith(PACKAGES):
            for value in vars(__import__(name, fromlist=["_"])).values():
                if inspect.isclass(value) and value.__module__ == name:
                    for field in fields_of(value):
                        if SECRET.search(field) or f"{value.__name__}.{field}" in PRESIGNED:
                            yield value, field


def fields_of(kind: type) -> list[str]:
    if issubclass(kind, BaseModel):
        return list(kind.model_fields)
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(getattr(kind, "_fields", ()))


CASES = {f"{kind.__name__}.{field}": (kind, field) for kind, field in secret_fields()}


@pytest.mark.security
@pytest.mark.parametrize("case", sorted(CASES.keys() - NOT_SECRET))
def test_no_text_of_a_value_has_its_secret(case: str) -> None:
    kind: Any
    kind, field = CASES[case]
    values: dict[str, Any] = {name: "s-cret" if name == field else "" for name in fields_of(kind)}
    if issubclass(kind, BaseModel):
        value = kind.model_construct(**values)
    elif issubclass(kind, tuple):
        value = kind(**values)
    else:
        value = object.__new__(kind)
        for name, text in values.items():
            object.__setattr__(value, name, text)
    of_rich = str(list(value.__rich_repr__())) if hasattr(value, "__rich_repr__") else ""
    assert "s-cret" not in repr(value) + str(value) + of_rich


def test_the_fields_of_secrets_are_found() -> None:
    assert {"SignInAttempt.secret", "OidcClient.client_secret", "Lease.token", "Signer.seed"} <= CASES.keys()
    assert CASES.keys() >= NOT_SECRET | PRESIGNED


@pytest.mark.security
def test_a_response_does_not_show_its_body_and_a_plan_of_a_cluster_not_its_token() -> None:
    response = HttpResponse("https://registry.test/", 200, email.message.Message(), b"s-cret")
    assert "s-cret" not in repr(response)
    source = modules()["registry.worker.cluster"].read_text()  # not imported: Ray may be absent
    assert "token: str = field(repr=False)" in source
