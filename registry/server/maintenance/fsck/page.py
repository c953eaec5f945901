"""`Page`: what one request of a check works with, and what it has found.

Invariants
- Rows that are compared with each other come from one snapshot of the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlmodel import Session

from registry.digest import Digest
from registry.errors import Unavailable
from registry.evaluation.verdicts import Finding, Severity
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, staging_key_of

NOWHERE = staging_key_of("probe", Digest.of(b""))
"""A key under which nothing is: whoever asks for it learns whether the store answers at all."""


@dataclass
class Page:
    engine: Engine
    blobs: BlobStore
    actor: Actor
    settings: Settings
    second: BlobStore | None = None
    deep: bool = False
    findings: list[Finding] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    bytes_hashed: int = 0

    def found(
        self,
        code: str,
        location: str,
        message: str,
        *,
        severity: Severity = "error",
        expected: str = "",
        found: str = "",
    ) -> None:
        self.findings.append(Finding.of(severity, code, location, message, expected, found))

    def unreadable(self, location: str, error: Unavailable) -> None:
        """What the store cannot read is told, and stops nothing; raised again where nothing can be had of the store."""
        if error.code != "STORE_UNAVAILABLE":
            raise error
        self.blobs.stat(NOWHERE)
        self.found("blob.unreadable", location, f"the store has it and could not read it: {error.detail}")

    def count(self, what: str, number: int = 1) -> None:
        self.checked[what] = self.checked.get(what, 0) + number

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A session whose statements all see the same moment."""
        with db.session(self.engine, write=False) as session:
            if self.engine.dialect.name == "postgresql":
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session
