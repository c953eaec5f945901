"""`Deployment`: a killable server on a database and a store, a client that retries, and the checks after every fault.

- Every acknowledged version exists once and is pulled byte for byte; numbers have no gap.
- `adapter fsck --deep` finds nothing: rows, blobs, records, alias histories and events agree.
- Each acknowledged change has one event, and nothing else has one.
- Every other invariant of `tests.faults.invariants` holds.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from sqlalchemy import text

from registry.api.access import TokenCreate
from registry.api.bases import BaseAdd
from registry.api.maintenance import FsckRequest, GcRequest
from registry.api.transfer import PushRequest
from registry.client.audit import Audit, ServerLog
from registry.client.local.folder import read_folder
from registry.client.registry import Registry
from registry.client.transfer import file_transfer, pull
from registry.client.transfer import push as pushing
from registry.client.transport.connection import Connection
from registry.digest import Digest
from registry.errors import NotFound, RegistryError, Unavailable
from registry.findings import Finding
from registry.hub import commit_id
from registry.names import AdapterName, Ref
from registry.server.database import db
from registry.server.database.engine import open_database
from registry.server.settings import Settings
from registry.server.storage.open import open_store
from registry.tlog.notes import Verifier
from registry.tlog.replay import replay
from registry.versions.manifest import BaseRef
from registry.versions.retention import RetentionRule
from tests import samples
from tests.base_specs import spec_of
from tests.bulk import plan_push
from tests.faults import hub_pushes
from tests.faults.invariants import Invariants
from tests.faults.servers import Server

BASE = samples.llama(hidden=256, layers=6)
QUIET = AdapterName.parse("other/quiet")
"""The one adapter of a tenant that only reads, and that sees the same whatever happens to the others."""
ATTESTATION_POLLS = 300
PUSHES_LIMIT = 6
"""How often a person would repeat a push. The client itself tries each request four times."""


@dataclass
class AcknowledgedPush:
    """A push that was acknowledged."""

    name: AdapterName
    digest: Digest
    folder: Path


@dataclass
class Deployment:
    """A server, its settings, and what it has acknowledged."""

    environment: Mapping[str, str]
    folder: Path
    acknowledged: list[AcknowledgedPush] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.settings = Settings.from_env(self.environment)
        log = self.folder / "server.log"
        self.server = Server(self.environment, log)
        secret = self.environment.get("AWS_SECRET_ACCESS_KEY", "")
        self.invariants = Invariants(lambda: open_database(self.settings), log, [secret])
        with self.server.running(), self.client() as client:
            client.add_base(BaseAdd(spec=spec_of(BASE), source=""))
            pushing.push_folder(client, self.adapter("other/quiet", 0, rank=2), QUIET, base=BASE.name)
            tenant = TokenCreate(name="tenant", scopes=["pull"], namespaces=[QUIET.namespace])
            self.tenant = client.create_token(tenant).secret

    def client(self, *, patient: bool = True) -> Registry:
        """Return a client that waits for a server that is starting; without `patient` it retries without pauses."""
        wait = self.server.pause if patient else lambda _seconds: None
        connection = Connection(self.server.url, self.server.token, wait=wait)
        connection.has_responded = True
        return Registry(self.server.url, connection=connection)

    def adapter(self, name: str, seed: int, *, rank: int = 64) -> Path:
        """Return a folder with an adapter whose weights are larger than one chunk of an upload. Never written twice."""
        folder = self.folder / f"{name.replace('/', '-')}-{seed}-{rank}"
        if not folder.exists():
            written = samples.write(samples.lora(BASE, seed=seed, rank=rank), Path(tempfile.mkdtemp(dir=self.folder)))
            with contextlib.suppress(OSError):  # another thread was faster
                written.rename(folder)
        return folder

    # ------------------------------------------------------------ faults
    def push_through(self, name: str, seed: int, *, failpoints: str) -> None:
        """Push two adapters in one group and promote while the server dies at a failpoint and restarts.

        The client must succeed.
        """
        folder, other = self.adapter(name, seed), self.adapter(f"{name}-beside", seed, rank=2)
        with self.server.running(failpoints=failpoints), self.server.reviving(), self.client() as client:
            pushed = self.push_group(client, {name: folder, f"{name}-beside": other})
            view = client.alias(name, "main")
            assert view.digest == pushed
            again = pushing.push_folder(client, folder, AdapterName.parse(name), base=BASE.name)
            effect = (
                [] if (again.created, again.version.digest) == (False, pushed) else ["a repeated push had an effect"]
            )
            client.promote(name, "canary", pushed, generation=0)
            problems = self.violations(client) + list(self.invariants.held("I14", effect))
        assert problems == [], f"{failpoints}: {problems}"

    def collect_through(self, name: str, seed: int, *, failpoints: str) -> None:
        """Collect what a killed push has left while the server dies at a failpoint; then push the same bytes again."""
        folder = self.adapter(name, seed)
        dies = self.server.running(failpoints="push.before_rows=kill")
        with dies, self.client(patient=False) as client, contextlib.suppress(Unavailable):
            pushing.push_folder(client, folder, AdapterName.parse(name), base=BASE.name)
        self.expire_pushes()
        with self.server.running(failpoints=failpoints), self.server.reviving(), self.client() as client:
            self.collect(client)
            problems = self.violations(client) + self.leftovers(client)
            self.push(client, folder, name)
            problems += self.violations(client)
        assert problems == [], f"{failpoints}: {problems}"

    def retain_through(self, name: str, seed: int, *, failpoints: str) -> None:
        """Let a rule delete the older of two versions while the server dies: once, and the newer stays."""
        with self.server.running(failpoints=failpoints), self.server.reviving(), self.client() as client:
            older = self.adapter(f"{name}-older", seed, rank=2)
            pushing.push_folder(client, older, AdapterName.parse(name), base=BASE.name)
            self.push(client, self.adapter(name, seed), name)
            client.set_retention(name, RetentionRule(keep_newest=1))
            self.collect(client)
            deleted = list(Audit(client).events(action=["version.delete"], object=f"{name}@1"))
            problems = self.violations(client)
        assert (len(deleted), problems) == (1, []), f"{failpoints}: {deleted}, {problems}"

    def commit_through(self, name: str, seed: int, *, failpoints: str) -> None:
        """Push by the Hub API while the server dies at a failpoint; nothing of the drafts may be left."""
        folder = self.adapter(name, seed)
        with self.server.running(failpoints=failpoints), self.server.reviving(), self.client() as client:
            commit = hub_pushes.push(self.server, name, folder)
            version = client.version(Ref(AdapterName.parse(name), 1))
            assert commit_id(version.digest) == commit
            self.acknowledged.append(AcknowledgedPush(AdapterName.parse(name), version.digest, folder))
            problems = self.violations(client)
        self.expire_pushes()
        with self.server.running(), self.client() as client:
            self.collect(client)
            problems += self.violations(client) + self.leftovers(client)
        assert problems == [], f"{failpoints}: {problems}"

    def log_through(self, name: str, seed: int, *, failpoints: str) -> None:
        """Push while the server dies between event, signature and attestation; then replay the whole log."""
        folder = self.adapter(name, seed)
        with self.server.running(failpoints=failpoints), self.server.reviving(), self.client() as client:
            self.push(client, folder, name)
            log = Audit(client)
            kinds = self._attested(log, f"{name}@1")
            problems = replay(ServerLog(log, log.checkpoint()), *map(Verifier.parse, log.log_keys().keys)).problems
            problems += self.violations(client)
        assert (kinds, problems) == (["push"], []), f"{failpoints}: {kinds}, {problems}"

    def _attested(self, log: Audit, ref: str) -> list[str]:
        """The kinds of a version's attestations, once there is one: the server makes them after its response."""
        for _ in range(ATTESTATION_POLLS):
            if kinds := [item.kind for item in log.attestations(ref).items]:
                return kinds
            self.server.pause(0.1)
        return []

    def push(self, client: Registry, folder: Path, name: str, *, also: tuple[type[RegistryError], ...] = ()) -> Digest:
        """Push until it is acknowledged; repeat after `Unavailable` and `also`."""
        for attempt in range(1, PUSHES_LIMIT + 1):
            try:
                pushed = pushing.push_folder(client, folder, AdapterName.parse(name), base=BASE.name)
            except (Unavailable, *also):  # type: ignore[misc]
                if attempt == PUSHES_LIMIT:
                    raise
                continue
            self.tries[f"pushes that took {attempt}"] += 1
            self.acknowledged.append(AcknowledgedPush(AdapterName.parse(name), pushed.version.digest, folder))
            return pushed.version.digest
        raise AssertionError("not reached")

    def push_group(self, client: Registry, folders: Mapping[str, Path]) -> Digest:
        """Push adapters together until all are acknowledged; returns the digest of the first one."""
        for _ in range(PUSHES_LIMIT):
            results = pushing.push_all(client, [(path, name) for name, path in folders.items()], base=BASE.name)
            errors = [result.error for result in results if result.error is not None]
            versions = [result.value.version for result in results if result.value is not None]
            if not errors:
                for version, (name, path) in zip(versions, folders.items(), strict=True):
                    self.acknowledged.append(AcknowledgedPush(AdapterName.parse(name), version.digest, path))
                return versions[0].digest
            if any(not isinstance(error, Unavailable) for error in errors):
                raise errors[0]
        raise errors[0]

    def send_only(self, client: Registry, folder: Path, name: str) -> None:
        """Plan a push and send its bytes without committing."""
        base = client.base(BASE.name)
        contents = read_folder(folder)
        manifest = contents.manifest(BaseRef(name=base.name, fingerprint=base.fingerprint))
        sources = {file.digest: contents.sources[file.path] for file in contents.files}
        for upload in plan_push(client, name, PushRequest(manifest=manifest)).uploads:
            with contextlib.suppress(NotFound):  # collected meanwhile: its time was up
                file_transfer.send(client, upload, sources[upload.digest], file_transfer.Silent())

    def expire_pushes(self, *, of: str = "%") -> None:
        """Expire all open pushes of this adapter."""
        engine = open_database(self.settings)
        statement = "UPDATE push SET expires_at = created_at WHERE state = 'open' AND namespace || '/' || name LIKE :of"
        with db.session(engine) as session:
            session.connection().execute(text(statement), {"of": of})
        engine.dispose()

    def collect(self, client: Registry, *, grace: int = 0) -> None:
        cursor = ""
        while True:
            report = client.collect(GcRequest(grace_seconds=grace, cursor=cursor))
            cursor = report.next_cursor
            if not cursor:
                return

    # ------------------------------------------------------------ what must hold
    def violations(self, client: Registry, *, since: int = -3) -> list[str]:
        """Return the violations now. Only the newest acknowledged versions are pulled; `all_violations` pulls each."""
        fsck = [f"fsck: {f.code} {f.location}: {f.message}" for f in self.findings(client)]
        problems = list(self.invariants.held("I2", fsck))
        problems += self.invariants.violations(client, self.tenant, self.server.token)
        for push in self.acknowledged[since:]:
            problems += self.invariants.held("I1", self.broken(client, push))
        return problems

    def leftovers(self, client: Registry) -> list[str]:
        """What a collection without grace has left of pushes that are over, or of blobs that nobody refers to."""
        with mock.patch.dict(os.environ, self.environment):  # the store's credentials
            staged = [stat.key for stat in open_store(self.settings).list("staging/")]
        dead = [f.location for f in self.findings(client) if f.code.startswith("blob.")]
        check = self.invariants.held
        return [*check("I7", [f"{it} is left" for it in dead]), *check("I8", [f"{key} is left" for key in staged])]

    def findings(self, client: Registry) -> list[Finding]:
        pages = [client.fsck(FsckRequest(deep=True))]
        while pages[-1].next_cursor:
            pages.append(client.fsck(FsckRequest(deep=True, cursor=pages[-1].next_cursor)))
        return [finding for page in pages for finding in page.findings]

    def all_violations(self, client: Registry) -> list[str]:
        problems = self.violations(client, since=0)
        events = Counter(f"{event.action} {event.object}" for event in Audit(client).events())
        twice = {logged: count for logged, count in events.items() if logged.startswith("version.push") and count > 1}
        problems += [f"event {logged} {count} times" for logged, count in twice.items()]
        names = {push.name for push in self.acknowledged}
        for name in names:
            promised = {push.digest for push in self.acknowledged if push.name == name}
            there = [version.digest for version in client.versions(name, limit=200).items]
            if not promised <= set(there) or len(there) != len(set(there)):
                problems.append(f"{name}: promised {len(promised)} versions and has {len(there)}")
        return problems

    def broken(self, client: Registry, push: AcknowledgedPush) -> list[str]:
        out = self.folder / f"out-{random.SystemRandom().getrandbits(32):x}"
        try:
            pull.pull(client, Ref(push.name, push.digest), out, cache=None)
            wrong = [p.name for p in push.folder.iterdir() if (out / p.name).read_bytes() != p.read_bytes()]
            return [f"{push.name}: {path} differs" for path in wrong]
        except RegistryError as e:
            return [f"{push.name}: cannot be pulled: {e.code} {e.detail}"]
        finally:
            shutil.rmtree(out, ignore_errors=True)
