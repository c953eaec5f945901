"""The check `weights`: what the numbers of a version's weights say, read once. Are they finite, do they act, how large?

    at the commit of a push    weights of at most `INLINE_BYTES`: the version begins with its verdict
    afterwards                 larger ones: when pushes have paused (`aftercare`), and in every run of `gc`

Invariants
- A version's weights are read once in its life for this; `version.measured_at` is empty until then.
- NaN and infinities fail; a B of zeros and updates beyond any trained weight are warnings: that is the trainer's right.
- A large version that turns out to hold NaN has its stored verdicts `engine` judged again in the same transaction.
- Updates are compared with the base's own weights where somebody has read those (`against`).
- Two servers that measure one version write one verdict.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Engine, update
from sqlmodel import Session, col, select

from registry import __version__
from registry.adapters import read
from registry.api.evaluation import ModuleNorms, NormsView
from registry.digest import Digest
from registry.errors import Invalid, NotFound, TooLarge
from registry.evaluation.verdicts import Check, Finding, Outcome, Verdict
from registry.manifest import Manifest
from registry.names import AdapterName, Selector
from registry.server.actors import Actor
from registry.server.catalog import verdicts, versions
from registry.server.database import db
from registry.server.database.models import BaseRow, VerdictRow, VersionNormsRow, VersionRow
from registry.server.evaluation import engine_compat
from registry.server.evaluation.weights import against
from registry.server.evaluation.weights.measure import Measured, measure
from registry.server.storage.blobs import BlobStore, key_of


def add_verdict(session: Session, row: VersionRow, base: BaseRow, measured: Measured | None) -> VerdictRow | None:
    """The verdict `weights` and the norms of a version that is being made; None while they are still to come.

    The row says already that it was measured.
    """
    return _write(session, row, base, measured) if measured is not None else None


def _write(session: Session, row: VersionRow, base: BaseRow, measured: Measured) -> VerdictRow:
    tools = {"registry": __version__}
    findings = (
        *measured.findings,
        *against.compare_with_base(against.load_base_norms(session, base, _scheme(row)), measured.norms),
    )
    verdict = Verdict.of(Check.WEIGHTS, Digest(row.digest), base.name, base.fingerprint, findings, made_by=tools)
    written = verdicts.to_row(verdict, row.id, row.base_id)
    text = json.dumps({path: asdict(norms) for path, norms in measured.norms.items()}, separators=(",", ":"))
    db.bulk_insert(session, [written])
    db.bulk_insert(session, [VersionNormsRow(version_id=row.id or 0, norms=text)])
    return written


# ------------------------------------------------------------------ afterwards
def measure_missing(engine: Engine, blobs: BlobStore, *, limit: int) -> int:
    """Measure up to `limit` versions that were not measured yet, the newest first; how many. Any number may do so."""
    waiting = _waiting(engine, limit)
    for version_id, manifest in waiting:
        measured = _measured(blobs, Manifest.model_validate_json(manifest))
        with db.session(engine) as session:
            mine = update(VersionRow).where(col(VersionRow.id) == version_id, col(VersionRow.measured_at).is_(None))
            if session.connection().execute(mine.values(measured_at=db.now())).rowcount:
                row = session.get_one(VersionRow, version_id)
                base = session.get_one(BaseRow, row.base_id)
                if _write(session, row, base, measured).outcome == Outcome.FAIL:
                    engine_compat.renew_verdicts(session, row, base)
    return len(waiting)


def has_unmeasured(engine: Engine) -> bool:
    """Whether some version is still to be measured."""
    return bool(_waiting(engine, 1))


def _waiting(engine: Engine, limit: int) -> Sequence[tuple[int | None, str]]:
    with db.session(engine, write=False) as session:
        statement = select(VersionRow.id, VersionRow.manifest).where(col(VersionRow.measured_at).is_(None))
        return session.exec(statement.order_by(col(VersionRow.id).desc()).limit(limit)).all()


def _measured(blobs: BlobStore, manifest: Manifest) -> Measured:
    """From the final keys. A version whose bytes cannot be read any more is `unknown`; an absent store is raised."""
    keys = {file.path: key_of(file.digest) for file in manifest.files}
    weights = read.weights_of(manifest.files)
    try:
        contents = read.read_any(manifest.files, lambda path, start, n: blobs.read(keys[path], start, n))
        key = keys[weights.path]
        return measure(lambda start, n: blobs.read(key, start, n), weights.size_bytes, contents.header, contents.pairs)
    except (Invalid, TooLarge, NotFound) as e:
        message = f"the numbers of its weights could not be read: {e.detail}"
        return Measured((Finding.of("unknown", "weights.unreadable", weights.path, message),), {})


# ------------------------------------------------------------------ asked
def show_norms(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> NormsView:
    """The norms of a version's modules, beside the base's; `measured_at` is empty until its numbers are read."""
    version = versions.find(session, actor, name, selector)
    row = session.get(VersionNormsRow, version.id)
    base = against.load_base_norms(session, session.get_one(BaseRow, version.base_id), _scheme(version))
    return NormsView(
        name=str(name), number=version.number, measured_at=version.measured_at,
        base=base.name, base_measured=bool(base.norms),
        modules={path: _module(base, path, numbers) for path, numbers in json.loads(row.norms).items()} if row else {},
    )  # fmt: skip


def _scheme(version: VersionRow) -> str:
    return str(version.facts.get("format") or against.PEFT)


def _module(base: against.BaseNorms, path: str, numbers: dict[str, float | None]) -> ModuleNorms:
    return ModuleNorms(**numbers, weight=base.norm(path), share=base.share(path, numbers["update"]))
