"""The check `engine`: what serving engines would do with a version, by the facts in its row. No blob is read.

Verdicts are stored for the profiles in REGISTRY_ENGINES whose engine serves adapters of this kind; for any other
profile they are computed and not stored. Facts of another release of this registry give the outcome `unknown`, never a
guess.

Where a worker has loaded the adapter with the engine itself, its verdict counts: facts replace it only by a no.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlmodel import Session, col, select

from registry import __version__, engines, names
from registry.adapters import formats, read
from registry.api.evaluation import CheckRequest, EngineSettingsList, VerdictList
from registry.bases import BaseSpec
from registry.compat import evaluate
from registry.digest import Digest
from registry.engines import EngineProfile, rulebook
from registry.engines import settings as engine_settings
from registry.errors import Invalid
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.names import AdapterName, Selector
from registry.server.actors import Actor
from registry.server.catalog import availability, base_rows, base_weights, verdicts, version_groups, versions
from registry.server.catalog.search import candidates
from registry.server.database import db
from registry.server.database.expressions import any_of, without_index
from registry.server.database.models import AdapterRow, BaseRow, VerdictRow, VersionRow
from registry.server.evaluation import engine_profiles
from registry.versions.files import CONFIG
from registry.versions.manifest import Descriptor

OPAQUE = "application/octet-stream"


def evaluate_profile(
    facts: dict[str, Any], profile: EngineProfile, digest: str, base: BaseSpec, compat: str, weights: str = ""
) -> Verdict:
    """The verdict of one profile. `compat` and `weights` are the newest outcomes of these checks, "" for none."""
    outcome = Outcome(compat) if compat else Outcome.UNKNOWN
    stored = {**(facts.get("engine") or {}), "weights": weights}
    return engines.verdict(stored, profile, subject=Digest(digest), base=base, compat=outcome, registry=__version__)


def of_kind(profiles: Iterable[EngineProfile], facts: Mapping[str, Any]) -> list[EngineProfile]:
    """Those whose engine serves adapters of this kind, text or image."""
    kind = "image" if formats.named(facts.get("format", "")).is_image else "text"
    return [profile for profile in profiles if rulebook.engine(profile.engine).kind == kind]


def newest_outcomes(verdicts: Iterable[Verdict]) -> tuple[str, str]:
    """The registry's newest outcomes of `compat` and of `weights` among verdicts, oldest first; "" for none."""
    newest = {verdict.check: str(verdict.outcome) for verdict in verdicts if not verdict.by_owner}
    return newest.get(Check.COMPAT, ""), newest.get(Check.WEIGHTS, "")


def build_verdicts(
    version: VersionRow, base: BaseRow, outcomes: tuple[str, str], profiles: Iterable[EngineProfile]
) -> list[VerdictRow]:
    """The rows of the verdicts of these profiles. `outcomes` are those of `compat` and of `weights`, "" for none."""
    spec = base_rows.load_spec(base)
    suited = of_kind(profiles, version.facts)
    evaluated = [evaluate_profile(version.facts, p, version.digest, spec, *outcomes) for p in suited]
    return [verdicts.to_row(verdict, version.id, version.base_id) for verdict in evaluated]


def profile_of_tools(made_by: Mapping[str, str]) -> str:
    """The profile of the engine that a worker loads adapters with, by the tools of its report; "" if it has none."""
    for name, rules in rulebook.engines().items():
        if rules.loaded_by_worker and name in made_by:
            try:
                return str(engines.profile(f"{name}=={made_by[name]}"))
            except Invalid:  # a report is untrusted
                return ""
    return ""


def by_workers(stored: Iterable[Verdict]) -> dict[str, Verdict]:
    """Profile → the newest verdict of a worker that loaded the adapter; the registry's own before an owner's."""
    from_workers = (v for v in stored if v.check is Check.ENGINE and v.report is not None)
    return {v.profile: v for v in sorted(from_workers, key=lambda v: not v.by_owner)}


def renew_verdicts(session: Session, version: VersionRow, base: BaseRow) -> None:
    """Write new verdicts for every stored profile, because another check of this version has changed."""
    stored = verdicts.newest_of(session, version)
    profiles = [engines.profile(verdict.profile) for verdict in stored if verdict.check is Check.ENGINE]
    loaded = by_workers(stored)
    rows = build_verdicts(version, base, newest_outcomes(stored), profiles)
    db.bulk_insert(session, [row for row in rows if row.outcome == Outcome.FAIL or row.profile not in loaded])


def evaluate_version(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, texts: Sequence[str]
) -> VerdictList:
    """The verdict `engine` of each profile, computed now; without profiles the newest stored verdicts of all checks."""
    version = versions.find(session, actor, name, selector)
    stored = verdicts.newest_of(session, version)
    if not texts:
        return VerdictList(items=stored)
    outcomes = newest_outcomes(stored)
    spec = base_rows.load_spec(base_rows.get(session, version.base_id))
    profiles = engine_profiles.parse_profiles(texts)
    evaluated = [evaluate_profile(version.facts, p, version.digest, spec, *outcomes) for p in profiles]
    loaded = by_workers(stored)
    return VerdictList(items=[v if v.outcome is Outcome.FAIL else loaded.get(v.profile, v) for v in evaluated])


def evaluate_files(session: Session, request: CheckRequest) -> VerdictList:
    """Verdicts about a configuration and a header that are not stored; their subject is the header's digest."""
    profiles = engine_profiles.parse_profiles(request.engines)
    base = base_rows.find(session, names.base_name(request.base))
    relatives = base_weights.find_relatives(session, base)
    text = request.header.encode()
    data = len(text).to_bytes(8, "little") + text
    contents_of = {request.file: data, **({CONFIG: request.config.encode()} if request.config else {})}
    sizes = {name: len(content) for name, content in contents_of.items()} | {request.file: request.size_bytes}
    files = [
        Descriptor(path=name, media_type=OPAQUE, digest=Digest.of(contents_of[name]), size_bytes=size)
        for name, size in sizes.items()
    ]
    contents = read.read_any(files, lambda name, start, length: contents_of[name][start : start + length])
    spec, subject = base_rows.load_spec(base), Digest.of(data)
    return VerdictList(items=evaluate(contents, spec, subject, profiles, relatives=relatives))


def settings_for_base(
    session: Session, actor: Actor, base_name: str, texts: Sequence[str], slots: int | None = None, *, cursor: str = "",
    limit: int,
) -> EngineSettingsList:  # fmt: skip
    """The settings that the newest versions of a page of this base's adapters need: of those that the actor may see.

    `cursor` is the id of the last adapter.
    """
    base = base_rows.find(session, names.base_name(base_name))
    after = versions.parse_cursor(cursor, digits=18)
    statement = (
        select(AdapterRow.id, version_groups.OF_FACTS)
        .select_from(AdapterRow)
        .join(VersionRow, versions.is_newest())
        .where(without_index(VersionRow.base_id) == base.id, ~availability.WITHDRAWN, versions.visible(actor))
        .where(col(AdapterRow.id) > after)
        .order_by(col(AdapterRow.id))
    )
    few = candidates.find_few(session, [candidates.on_bases([base.id or 0])], candidates.CANDIDATES_LIMIT)
    statement = statement if few is None else statement.where(few)
    measured = session.exec(statement.limit(limit + 1)).all()
    on_page = measured[: version_groups.count_fitting(length for _, length in measured[:limit])]
    columns = (col(AdapterRow.namespace), col(AdapterRow.name), col(VersionRow.facts))
    page = statement.with_only_columns(*columns).where(any_of(col(AdapterRow.id), [row_id for row_id, _ in on_page]))
    rows = session.connection().execute(page)
    facts_of = {f"{namespace}/{name}": facts.get("engine") or {} for namespace, name, facts in rows}
    spec = base_rows.load_spec(base)
    items = [
        engine_settings.settings_for(str(p), facts_of, spec, slots=slots) for p in engine_profiles.parse_profiles(texts)
    ]
    next_cursor = str(on_page[-1][0]) if len(measured) > len(on_page) else ""
    return EngineSettingsList(base=base.name, adapters=len(facts_of), items=items, next_cursor=next_cursor)
