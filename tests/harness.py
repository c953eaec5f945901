"""`Harness`: a registry in this process, with a real database, blobs in memory and our own client in front of it.

    harness.admin                               a client with every right
    harness.actor("push", namespaces=["acme"])  a client with its own token
    harness.add_base()                          register a tiny base
    harness.push("acme/support")                push a sample adapter
    harness.validate("acme/support@1")          finish the smoke test as a worker would
    harness.statements()                        record the SQL that a block sends

Invariants
- Nothing is mocked: requests go through the application, its routes and the database.
- `close` checks what must hold whenever nothing is under way: no blob without a row, no row without a blob,
  no job running.

Example
    with Harness(f"sqlite:///{tmp_path}/registry.db") as harness:
        harness.add_base()
        assert harness.push("acme/support").version.number == 1
"""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlmodel import Session, select

from registry.api.access import TokenCreate
from registry.api.bases import BaseAdd, BaseView
from registry.api.jobs import ClaimRequest, FinishRequest
from registry.api.transfer import PushPlan, PushRequest, PushResult, Upload
from registry.bases import BaseSpec
from registry.client.registry import Registry
from registry.digest import Digest
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from registry.server import app
from registry.server.access import tokens
from registry.server.actors import TRUSTED
from registry.server.audit import audit_log
from registry.server.database import db, schema
from registry.server.database.engine import open_database
from registry.server.database.models import BlobRow
from registry.server.database.models.jobs import JobRow
from registry.server.maintenance import gc, reevaluate, reindex
from registry.server.maintenance.fsck import blobs, check
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, digest_of
from registry.token_secret import new_secret, sha256_of
from registry.versions.files import kind_of
from registry.versions.manifest import BaseRef, Descriptor, Edge, Manifest
from registry.versions.provenance import Provenance
from tests import samples, usage
from tests.base_specs import spec_of
from tests.bulk import commit_push, plan_push
from tests.httpx_transports import HttpxInProcess
from tests.memory_blobs import MemoryBlobs

# Limits after which a response holds less: on a busy machine a test would not get all that it asks for.
audit_log.CATCH_UP_SECONDS = gc.SECONDS = reindex.SECONDS = reevaluate.SECONDS = check.SECONDS = blobs.SECONDS = 120.0
URL = "http://registry.test"
WEIGHTS_TYPE = "application/octet-stream"


class Harness:
    def __init__(self, database_url: str, *, blobs: BlobStore | None = None, **settings: Any) -> None:
        self._data = tempfile.TemporaryDirectory(prefix="harness-")
        self.settings = Settings(database_url=database_url, **{"data": self._data.name, **settings}).with_defaults()
        self.engine = open_database(self.settings)
        self._blobs = blobs if blobs is not None else MemoryBlobs()
        schema.prepare(self.engine)
        self.app = app.create_app(self.settings, engine=self.engine, blobs=self._blobs)
        self.transport = HttpxInProcess(self.app)
        secret = new_secret()
        self.secret = secret if tokens.create_first_token(self.engine, sha256_of(secret)) else ""
        self.admin = self.client(self.secret)
        self.bases: dict[str, BaseSpec] = {}
        self._seeds = itertools.count(1)

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self.transport.close()
            self.engine.dispose()
            self._data.cleanup()

    def check(self) -> None:
        """What holds whenever no request is under way, and while what follows a response still is: a row comes before
        its bytes, and says `live` after them, so bytes are listed before and after the rows are read."""
        assert usage.find_differences(self.engine) == [], "counters differ from a recount"
        before = self._kept()
        with self.session() as session:
            rows = {row.digest: row.state for row in session.exec(select(BlobRow)).all()}
            running = [row.id for row in session.exec(select(JobRow).where(JobRow.state == "running")).all()]
        assert before - set(rows) == set(), "blobs without a row"
        live = {digest for digest, state in rows.items() if state == "live"}
        assert live - before == set() or live - self._kept() == set(), "rows without a blob"
        assert running == [], "jobs left running"

    def _kept(self) -> set[str]:
        return {str(digest_of(stat.key)) for stat in self.blobs.list("blobs/")}

    @property
    def blobs(self) -> BlobStore:
        """The store, once what follows earlier responses has ended."""
        self._settle()
        return self._blobs

    def session(self, *, write: bool = False) -> Any:
        """A transaction of the test's own, once what follows earlier responses has ended."""
        self._settle()
        return db.session(self.engine, write=write)

    def _settle(self) -> None:
        if threading.current_thread() is threading.main_thread():  # another thread of a test may be such work
            self.transport.settle(completed=True)

    # ------------------------------------------------------------ who
    def client(self, secret: str) -> Registry:
        return Registry(URL, secret, self.transport)

    def actor(self, *scopes: str, namespaces: Iterable[str] = ("*",), name: str = "somebody") -> Registry:
        return self.client(self.issue(*scopes, namespaces=namespaces, name=name)[1])

    def issue(
        self, *scopes: str, namespaces: Iterable[str] = ("*",), name: str = "somebody", seconds: int | None = None
    ) -> tuple[str, str]:
        """A new token: its id and its secret."""
        request = TokenCreate(name=name, scopes=list(scopes), namespaces=list(namespaces), expires_in_seconds=seconds)
        with self.session(write=True) as session:
            view, secret = tokens.issue(session, TRUSTED, request)
        return view.id, secret

    # ------------------------------------------------------------ bases and versions
    def add_base(self, base: samples.Base | None = None, *, source: str = "") -> BaseView:
        base = base or samples.llama()
        spec = spec_of(base)
        self.bases[base.name] = spec
        return self.admin.add_base(BaseAdd(spec=spec, source=source))

    def files(self, base: samples.Base | None = None, **how: Any) -> samples.Files:
        """A good adapter that no test has had before."""
        return samples.lora(base or samples.llama(), **{"seed": next(self._seeds), **how})

    def push(
        self,
        name: str,
        files: Mapping[str, bytes] | None = None,
        *,
        base: str = "tiny-llama",
        alias: str = "",
        message: str = "",
        parents: Sequence[Edge] = (),
        annotations: dict[str, str] | None = None,
        provenance: Provenance | None = None,
        by: Registry | None = None,
    ) -> PushResult:
        """Plan, upload, commit, through the API."""
        registry = by or self.admin
        files = self.files() if files is None else files
        more = {"annotations": annotations or {}, "provenance": provenance}
        manifest = self.manifest(files, base, parents).model_copy(update=more)
        plan = plan_push(registry, name, PushRequest(manifest=manifest, message=message))
        upload(registry, plan, files)
        return commit_push(registry, plan.push_id, alias=alias)

    def manifest(self, files: Mapping[str, bytes], base: str = "tiny-llama", parents: Sequence[Edge] = ()) -> Manifest:
        described = [
            Descriptor(path=path, media_type=media_type(path), digest=Digest.of(data), size_bytes=len(data))
            for path, data in files.items()
        ]
        return Manifest.build(BaseRef(name=base, fingerprint=self.bases[base].fingerprint), described, parents)

    # ------------------------------------------------------------ verdicts
    def validate(
        self, ref: str, findings: Sequence[Finding] = (), *, by: Registry | None = None, **values: Any
    ) -> None:
        """Take the smoke test of this version from the queue, as a worker does, and end it with these findings.

        `values` are other fields of the report.
        """
        worker = by or self.admin
        version = worker.version(ref)
        passed_over = []
        while True:
            claimed = worker.claim(ClaimRequest(worker="test"))
            assert claimed is not None, f"no job for {ref}"
            if claimed.job.subject == f"{version.name}@{version.number}":
                break
            passed_over.append(claimed)
        report = self.report(version.digest, version.base, findings).model_copy(update=values)
        worker.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
        self.give_back([other.job.id for other in passed_over])

    def report(self, subject: Digest, base: str, findings: Sequence[Finding] = ()) -> Report:
        return Report(
            check=Check.SMOKE,
            subject=subject,
            base=base,
            base_fingerprint=self.bases[base].fingerprint,
            findings=tuple(findings),
            measurements={"largest_difference": 0.25},
            made_by={"worker": "test"},
        )

    def give_back(self, job_ids: Iterable[str]) -> None:
        """Jobs as if nobody had claimed them."""
        with self.session(write=True) as session:
            for job_id in job_ids:
                row = session.get_one(JobRow, job_id)
                row.state, row.attempt, row.lease_token, row.lease_expires_at = "queued", 0, "", None
                session.add(row)

    # ------------------------------------------------------------ looking inside
    @contextmanager
    def statements(self) -> Iterator[list[str]]:
        """The statements that reach the database in this block, without BEGIN and COMMIT. What earlier requests
        still do after their responses has ended before it begins."""
        self.transport.settle()
        sent: list[str] = []

        def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if not statement.startswith("BEGIN"):
                sent.append(statement)

        event.listen(self.engine, "before_cursor_execute", note)
        try:
            yield sent
        finally:
            event.remove(self.engine, "before_cursor_execute", note)


def upload(registry: Registry, plan: PushPlan, files: Mapping[str, bytes]) -> None:
    """Send the blobs that the plan asks for."""
    by_digest = {Digest.of(data): data for data in files.values()}
    for blob in plan.uploads:
        send_blob(registry, blob, by_digest[blob.digest])


def send_blob(registry: Registry, blob: Upload, data: bytes) -> None:
    """Send one blob where its plan says."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        registry.connection.send_file(blob.url, file, 0, len(data), headers=blob.headers)


def media_type(path: str) -> str:
    kind = kind_of(path)
    return kind.media_type if kind is not None else WEIGHTS_TYPE


def rows(session: Session, table: type[Any]) -> list[Any]:
    """All rows, in the order of their keys."""
    return list(session.exec(select(table).order_by(*table.__table__.primary_key.columns)).all())
