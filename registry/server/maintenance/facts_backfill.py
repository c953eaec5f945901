"""Analysis: configuration and header of a version read again, where an older release kept other facts of them.

Invariants
- Only versions whose facts this release cannot judge by are read, and of them no tensor.
- Bytes are read in no transaction; facts, tags and the new verdict `compat` are written together.
- Digest, number and lineage stay as they are, and so does what the README claimed, of which lineage tells.
- What cannot be read is left as it is: what engines do with it stays `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from registry.bases import BaseSpec
from registry.bases.similarity import Similarity
from registry.engines import facts as engine_facts
from registry.errors import RegistryError
from registry.evaluation.verdicts import Outcome, add_up
from registry.manifest import Manifest
from registry.server.catalog import base_identity, bases
from registry.server.database import db
from registry.server.database.models import BaseRow, VersionRow
from registry.server.push import inspect, rows
from registry.server.push.inspect import Inspection
from registry.server.storage.blobs import BlobStore, key_of

CARD = "card"
"""The fact that is the README's, not the header's."""


@dataclass(frozen=True, slots=True)
class Analysed:
    """What one version's header says today."""

    id: int
    manifest: Manifest
    judged: Inspection
    facts: dict[str, Any]

    @property
    def compat(self) -> Outcome:
        return add_up(self.judged.findings)


def is_old(facts: Mapping[str, Any]) -> bool:
    """Whether a version's facts are of a release that knew other ones."""
    return not engine_facts.are_current(facts.get("engine") or {})


def read(engine: Engine, blobs: BlobStore, ids: Iterable[int]) -> dict[int, Analysed]:
    """Version → what is in its bytes. Those are left out whose bytes cannot be read, or that are gone by now."""
    known: dict[int, tuple[BaseSpec, Sequence[Similarity]]] = {}
    found = {}
    for version_id in ids:
        with db.session(engine, write=False) as session:
            row = session.get(VersionRow, version_id)
            if row is None:
                continue
            if row.base_id not in known:
                base = session.get_one(BaseRow, row.base_id)
                known[row.base_id] = bases.load_spec(base), base_identity.find_relatives(session, base)
            manifest, card = Manifest.model_validate_json(row.manifest), row.facts.get(CARD)
            spec, relatives = known[row.base_id]
        keys = {file.digest: key_of(file.digest) for file in manifest.files}
        try:
            judged = inspect.inspect_files(blobs, keys, manifest, spec, relatives, measure_small=False)
        except RegistryError:
            continue
        facts = {name: value for name, value in judged.facts.items() if name != CARD}
        found[version_id] = Analysed(version_id, manifest, judged, facts | ({CARD: card} if card else {}))
    return found


def keep(session: Session, analysed: Analysed) -> bool:
    """Write it into the version's rows; False if the version is gone by now."""
    row = session.get(VersionRow, analysed.id)
    if row is None:
        return False
    row.facts, row.method, row.rank = analysed.facts, analysed.judged.method, analysed.judged.rank
    session.add(row)
    rows.replace_tags(session, row, analysed.manifest)
    rows.add_compat_verdict(session, row, session.get_one(BaseRow, row.base_id), analysed.judged)
    return True
