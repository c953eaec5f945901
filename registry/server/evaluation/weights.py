"""The check `weights`: are the numbers of a version's weights finite, do they change anything, how large are they?

- Weights of at most `INLINE_BYTES` are read in the commit of a push, larger ones after it (`push.background`) or by
  `gc`. `version.measured_at` is empty until then; two servers that measure one version write one verdict.
- NaN and infinities fail. A zero B and huge updates are warnings.
- If a large version turns out to hold NaN, its `engine` verdicts are renewed in the same transaction.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from sqlalchemy import Engine, update
from sqlmodel import Session, col, select

from registry import __version__
from registry.adapters import read
from registry.api.evaluation import ModuleNorms, NormsView
from registry.digest import Digest
from registry.errors import Invalid, NotFound, TooLarge
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.findings import Finding
from registry.manifest import Manifest
from registry.names import AdapterName, Selector
from registry.server.actors import Actor
from registry.server.catalog import verdicts, versions
from registry.server.database import db
from registry.server.database.models import BaseRow, VerdictRow, VersionNormsRow, VersionRow
from registry.server.evaluation import base_norms, engine_compat
from registry.server.evaluation.base_norms import BaseNorms
from registry.server.evaluation.norms import Measured, measure
from registry.server.storage.blobs import BlobStore, key_of


def add_verdict(session: Session, row: VersionRow, base: BaseRow, measured: Measured) -> VerdictRow:
    """Write the verdict `weights` of a version and the norms of its modules; its row already has `measured_at`."""
    verdict, norms = build_verdict(row, base, base_norms.load_base_norms(session, base, format_of(row)), measured)
    db.bulk_insert(session, [verdict])
    db.bulk_insert(session, [norms])
    return verdict


def build_verdict(
    row: VersionRow, base: BaseRow, norms: BaseNorms, measured: Measured
) -> tuple[VerdictRow, VersionNormsRow]:
    """The rows that `add_verdict` writes. `norms` are the base's for the version's format."""
    tools = {"registry": __version__}
    findings = (*measured.findings, *base_norms.compare_with_base(norms, measured.norms))
    verdict = Verdict.of(Check.WEIGHTS, Digest(row.digest), base.name, base.fingerprint, findings, made_by=tools)
    text = json.dumps({path: asdict(norms) for path, norms in measured.norms.items()}, separators=(",", ":"))
    return verdicts.to_row(verdict, row.id, row.base_id), VersionNormsRow(version_id=row.id or 0, norms=text)


# ------------------------------------------------------------------ after the push
def measure_newest(engine: Engine, blobs: BlobStore) -> bool:
    """Measure the newest version that was not measured yet; return whether there was one."""
    unmeasured = _find_unmeasured(engine)
    if unmeasured is None:
        return False
    version_id, manifest = unmeasured
    measured = _measure(blobs, Manifest.model_validate_json(manifest))
    with db.session(engine) as session:
        still_unmeasured = (col(VersionRow.id) == version_id, col(VersionRow.measured_at).is_(None))
        claim = update(VersionRow).where(*still_unmeasured).values(measured_at=db.now())
        if session.connection().execute(claim).rowcount:
            row = session.get_one(VersionRow, version_id)
            base = session.get_one(BaseRow, row.base_id)
            if add_verdict(session, row, base, measured).outcome == Outcome.FAIL:
                engine_compat.renew_verdicts(session, row, base)
    return True


def has_unmeasured(engine: Engine) -> bool:
    """Whether some version is still to be measured."""
    return _find_unmeasured(engine) is not None


def _find_unmeasured(engine: Engine) -> tuple[int | None, str] | None:
    with db.session(engine, write=False) as session:
        statement = select(VersionRow.id, VersionRow.manifest).where(col(VersionRow.measured_at).is_(None))
        return session.exec(statement.order_by(col(VersionRow.id).desc()).limit(1)).first()


def _measure(blobs: BlobStore, manifest: Manifest) -> Measured:
    """Read the final keys. If the bytes of the version are lost the verdict is `unknown`; an outage is raised."""
    keys = {file.path: key_of(file.digest) for file in manifest.files}
    weights = read.weights_of(manifest.files)
    try:
        contents = read.read_any(manifest.files, lambda path, start, n: blobs.read(keys[path], start, n))
        key = keys[weights.path]
        return measure(lambda start, n: blobs.read(key, start, n), weights.size_bytes, contents.header, contents.pairs)
    except (Invalid, TooLarge, NotFound) as e:
        message = f"the numbers of its weights could not be read: {e.detail}"
        return Measured((Finding.of("unknown", "weights.unreadable", weights.path, message),), {})


# ------------------------------------------------------------------ read
def show_norms(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> NormsView:
    """The norms of a version's modules, and of the base's; `measured_at` is empty until its numbers are read."""
    version = versions.find(session, actor, name, selector)
    row = session.get(VersionNormsRow, version.id)
    base = base_norms.load_base_norms(session, session.get_one(BaseRow, version.base_id), format_of(version))
    modules = json.loads(row.norms) if row is not None else {}
    return NormsView(
        name=str(name), number=version.number, digest=Digest(version.digest), measured_at=version.measured_at,
        base=base.name, base_measured=bool(base.norms),
        modules={
            path: ModuleNorms(**norms, weight=base.norm(path), share=base.share(path, norms["update"]))
            for path, norms in modules.items()
        },
    )  # fmt: skip


def format_of(version: VersionRow) -> str:
    """The format of a version's files, which says how they name modules."""
    return str(version.facts.get("format") or base_norms.PEFT)
