"""`FsckRun`: the state of one request of a check."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlmodel import Session

from registry.digest import Digest
from registry.errors import Unavailable
from registry.findings import Finding, Severity
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, staging_key_of

NO_KEY = staging_key_of("probe", Digest.of(b""))
"""A key where nothing is: looking it up shows whether the store responds at all."""


@dataclass
class FsckRun:
    """What one request works with, and what it has found."""

    engine: Engine
    blobs: BlobStore
    actor: Actor
    settings: Settings
    second_copy: BlobStore | None = None
    deep: bool = False
    findings: list[Finding] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    bytes_hashed: int = 0

    def add(
        self,
        code: str,
        location: str,
        message: str,
        *,
        severity: Severity = "error",
        expected: str = "",
        actual: str = "",
    ) -> None:
        """Add a finding."""
        self.findings.append(Finding.of(severity, code, location, message, expected, actual))

    def add_unreadable(self, location: str, error: Unavailable) -> None:
        """Add a finding for something that the store cannot read; raise if the store does not respond at all."""
        if error.code != "STORE_UNAVAILABLE":
            raise error
        self.blobs.stat(NO_KEY)
        self.add("blob.unreadable", location, f"the store has it and cannot read it: {error.detail}")

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count of what was checked."""
        self.checked[name] = self.checked.get(name, 0) + number

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Open a session whose statements all see the same moment, for rows that are compared with each other."""
        with db.snapshot(self.engine) as session:
            yield session
