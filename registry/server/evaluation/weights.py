"""The check `weights`: are the numbers of a version's weights finite, do they change anything, how large are they?

- Weights of at most `INLINE_BYTES` are read in the commit of a push, larger ones after it (`push.background`) or by
  `gc`. `version.measured_at` is empty until then; two servers that measure one version write one verdict.
- NaN and infinities fail. A zero B and huge updates are warnings.
- If a large version turns out to hold NaN, its `engine` verdicts are renewed in the same transaction.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import count

from sqlalchemy import Engine, bindparam, update
from sqlmodel import Session, col, select

from registry import __version__
from registry.adapters import read
from registry.adapters.formats import PEFT, Format, named
from registry.api import evaluation as views
from registry.compat.paths import Paths
from registry.digest import Digest
from registry.errors import Invalid, NotFound, TooLarge, Unavailable
from registry.evaluation.thresholds import DEFAULTS, Thresholds
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.findings import Finding
from registry.names import AdapterName, Selector
from registry.server.actors import Actor
from registry.server.catalog import availability, base_rows, verdicts, versions
from registry.server.database import db
from registry.server.database.models import BaseIdentityRow, BaseRow, VerdictRow, VersionRow
from registry.server.database.models.jobs import BaseThresholdsRow
from registry.server.database.models.pushes import VersionNormsRow
from registry.server.evaluation import engine_compat
from registry.server.evaluation.norms import (
    INLINE_BYTES,
    FactorNorms,
    Factors,
    Measured,
    MeasuringPlan,
    compute_cosines,
    measure,
    read_updates,
)
from registry.server.storage.blobs import BlobStore, key_of
from registry.versions.manifest import Manifest

# ------------------------------------------------------------------ norms of bases
CACHED_BASES = 16
_HEAD = "lm_head"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""The embeddings, under the names that architectures give them: a head without a weight of its own is tied to them."""
_OF_EXPERTS = {"gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")), "down_proj": (("w2",), ("down_proj",))}
"""A parameter of a block of experts, and the names of its parts in files that hold each expert by itself."""
_CACHE: dict[tuple[str, str, datetime], Mapping[str, float]] = {}


@dataclass(frozen=True, slots=True)
class BaseNorms:
    """The norms of a base's weights by tensor, empty if no one has read them, and the thresholds for its adapters.

    They come from the base's identity (`adapter base identify`) and never change, so a process reads them once.

    `paths` translates another tool's names to modules; None for PEFT, which uses the modules' own names.
    """

    name: str
    norms: Mapping[str, float]
    thresholds: Thresholds = DEFAULTS
    paths: Paths | None = None

    def norm(self, path: str) -> float | None:
        """|W| of the module under a file's path, or of all modules that are parts of one fused matrix."""
        modules = (path,) if self.paths is None else self.paths.of(path) or ()
        sizes = [self._norm(module) for module in modules]
        measured = [size for size in sizes if size is not None]
        return float(f"{math.hypot(*measured):.5g}") if measured and len(measured) == len(sizes) else None

    def _norm(self, path: str) -> float | None:
        """|W| of a module, or of a parameter of a block of experts; a tied head has the embedding's."""
        names = (path, path.replace(".mlp.", ".block_sparse_moe."))  # the model's name, and that of Mixtral's files
        sizes = (self.norms.get(f"{name}.weight") or self.norms.get(name) or self._experts(name) for name in names)
        norm = next((size for size in sizes if size is not None), None)
        if norm is None and path.rpartition(".")[2] == _HEAD:
            norm = next((size for name, size in self.norms.items() if name.endswith(_EMBEDDINGS)), None)
        return norm

    def _experts(self, path: str) -> float | None:
        """|W| of one parameter of all experts, if the files hold each expert by itself."""
        block, _, parameter = path.rpartition(".")
        sizes: list[float] = []
        for leaves in _OF_EXPERTS.get(parameter, ()):
            for expert in count():
                each = [self.norms.get(f"{block}.{expert}.{leaf}.weight") for leaf in leaves]
                measured = [size for size in each if size is not None]
                if len(measured) < len(leaves):
                    break
                sizes += measured
        return math.hypot(*sizes) if sizes else None

    def share(self, path: str, update: float | None) -> float | None:
        """|scale · BA| / |W|, in three digits; None if one of them is unknown or W is zero."""
        weight = self.norm(path)
        return float(f"{update / weight:.3g}") if weight and update is not None else None


_SELECT_THRESHOLDS = (
    select(BaseThresholdsRow.thresholds)
    .select_from(BaseIdentityRow)
    .outerjoin(BaseThresholdsRow, col(BaseThresholdsRow.base_id) == col(BaseIdentityRow.base_id))
    .where(col(BaseIdentityRow.base_id) == bindparam("id"))
)
"""A row exists if the base has an identity. Built once: every push executes it."""


def load_base_norms(session: Session, base: BaseRow, format: Format = PEFT) -> BaseNorms:
    """The norms of the base for an adapter whose names are in this format."""
    rows = session.exec(_SELECT_THRESHOLDS, params={"id": base.id}).all()
    if not rows:
        return BaseNorms(base.name, {})
    key = (base.name, base.fingerprint, base.created_at)
    norms = _CACHE.get(key)
    if norms is None:
        text = session.exec(select(BaseIdentityRow.identity).where(col(BaseIdentityRow.base_id) == base.id)).one()
        norms = {name: mark["norm"] for name, mark in json.loads(text)["marks"].items() if mark.get("norm") is not None}
        if norms:  # an identity of an earlier release may still get them
            if len(_CACHE) >= CACHED_BASES:
                _CACHE.clear()
            _CACHE[key] = norms
    paths = Paths(format, base_rows.load_spec(base).modules) if norms and format != PEFT else None
    return BaseNorms(base.name, norms, Thresholds.with_overrides(rows[0] or {}), paths)


def compare_with_base(base: BaseNorms, norms: Mapping[str, FactorNorms]) -> tuple[Finding, ...]:
    """`weights.beyond_base` where an update is larger than the base's threshold allows."""
    if not base.norms:
        return ()
    limit = base.thresholds.update_share_warn
    shares = {path: base.share(path, size.update) for path, size in norms.items()}
    beyond = {path: share for path, share in shares.items() if share is not None and share > limit}
    if not beyond:
        return ()
    worst = max(beyond, key=beyond.__getitem__)
    compared = sum(share is not None for share in shares.values())
    message = (
        f"the update of {worst[:300]} is {beyond[worst]:.3g} times as large as the weight of {base.name[:200]} that it "
        f"changes ({len(beyond)} of {compared} modules are over {limit:g}); trained updates are mostly below 0.3"
    )
    return (Finding.of("warning", "weights.beyond_base", worst, message, f"at most {limit:g}", f"{beyond[worst]:.3g}"),)


def add_verdict(session: Session, row: VersionRow, base: BaseRow, measured: Measured) -> VerdictRow:
    """Write the verdict `weights` of a version and the norms of its modules; its row already has `measured_at`."""
    verdict, norms = build_verdict(row, base, load_base_norms(session, base, format_of(row)), measured)
    db.bulk_insert(session, [verdict])
    db.bulk_insert(session, [norms])
    return verdict


def build_verdict(
    row: VersionRow, base: BaseRow, norms: BaseNorms, measured: Measured
) -> tuple[VerdictRow, VersionNormsRow]:
    """The rows that `add_verdict` writes. `norms` are the base's for the version's format."""
    tools = {"registry": __version__}
    findings = (*measured.findings, *compare_with_base(norms, measured.norms))
    verdict = Verdict.of(Check.WEIGHTS, Digest(row.digest), base.name, base.fingerprint, findings, made_by=tools)
    text = json.dumps({name: asdict(norm) for name, norm in measured.norms.items()})
    return verdicts.to_row(verdict, row.id, row.base_id), db.new_row(
        VersionNormsRow, version_id=row.id or 0, norms=text
    )


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
            base = base_rows.get(session, row.base_id)
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
        plan = MeasuringPlan.of(contents.header, contents.pairs)
        return measure(lambda start, n: blobs.read(key, start, n), weights.size_bytes, plan)
    except (Invalid, TooLarge, NotFound) as e:
        message = f"the numbers of its weights could not be read: {e.detail}"
        return Measured((Finding.of("unknown", "weights.unreadable", weights.path, message),), {})


# ------------------------------------------------------------------ read
def show_norms(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> views.NormsView:
    """The norms of a version's modules, and of the base's; `measured_at` is empty until its numbers are read."""
    version = versions.find(session, actor, name, selector)
    row = session.get(VersionNormsRow, version.id)
    base = load_base_norms(session, base_rows.get(session, version.base_id), format_of(version))
    modules = json.loads(row.norms) if row is not None else {}
    return views.NormsView(
        name=str(name), number=version.number, digest=Digest(version.digest), measured_at=version.measured_at,
        base=base.name, base_measured=bool(base.norms),
        modules={
            path: views.ModuleNorms(**norms, weight=base.norm(path), share=base.share(path, norms["update"]))
            for path, norms in modules.items()
        },
    )  # fmt: skip


COMPARED_PAIRS = 256
_COSINES: dict[tuple[str, str], dict[str, float]] = {}
_COMPARING = threading.Lock()
"""One comparison at a time: each holds the numbers of two versions, as 32-bit floats."""
COMPARE_WAIT_SECONDS = 2
"""How long a request waits for the ones before it. Each has one of the threads that may wait for the store."""


def compare_updates(
    session: Session, actor: Actor, blobs: BlobStore, first: tuple[AdapterName, int], second: tuple[AdapterName, int]
) -> dict[str, float]:
    """Module → the cosine of the updates of two versions, of modules that both change. Results are remembered.

    `TooLarge` (SIZE_INVALID) for weights over `INLINE_BYTES`, `Invalid` for those that cannot be read, `NotFound`,
    `Refused` (QUARANTINED), `Unavailable` (TRY_LATER) while others are compared.
    """
    rows = [versions.find(session, actor, *side) for side in (first, second)]
    for (name, number), row in zip((first, second), rows, strict=True):
        availability.require_readable(actor, name, row, number)
    key = (rows[0].digest, rows[1].digest)
    cosines = _COSINES.get(key)
    if cosines is not None:
        return cosines
    if not _COMPARING.acquire(timeout=COMPARE_WAIT_SECONDS):
        raise Unavailable("TRY_LATER", "other versions are compared now: try again in a moment", retry_after_seconds=5)
    try:
        if key not in _COSINES:
            sides = [_read_updates(blobs, Manifest.model_validate_json(row.manifest)) for row in rows]
            if len(_COSINES) >= COMPARED_PAIRS:
                _COSINES.clear()
            _COSINES[key] = compute_cosines(*sides)
        return _COSINES[key]
    finally:
        _COMPARING.release()


def _read_updates(blobs: BlobStore, manifest: Manifest) -> Factors:
    keys = {file.path: key_of(file.digest) for file in manifest.files}
    weights = read.weights_of(manifest.files)
    if weights.size_bytes > INLINE_BYTES:
        detail = f"{weights.path} has {weights.size_bytes} bytes, the limit of a comparison is {INLINE_BYTES}"
        raise TooLarge("SIZE_INVALID", detail)
    contents = read.read_any(manifest.files, lambda path, start, n: blobs.read(keys[path], start, n))
    plan = MeasuringPlan.of(contents.header, contents.pairs)
    return read_updates(lambda start, n: blobs.read(keys[weights.path], start, n), weights.size_bytes, plan)


def format_of(version: VersionRow) -> Format:
    """The format of a version's files, which says how they name modules."""
    return named(str(version.facts.get("format") or PEFT))
