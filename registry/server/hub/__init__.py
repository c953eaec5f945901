"""What the Hub's dialect reads: an adapter at a revision, its files, references and commits; and the list of adapters.

Invariants
- The same catalog, the same rights and the same words for what is absent as everywhere.
- By an alias a yanked version is refused; by tag or commit id it is still answered.
- A path or a name that can be none of ours is absent, not malformed: clients probe, and cache what is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import tuple_
from sqlmodel import Session, col, select

from registry import hub as dialect
from registry import names
from registry.adapters.formats import IMAGE_SCHEMES, TEXT_SCHEMES, images
from registry.adapters.peft.methods import METHODS
from registry.api import VersionView
from registry.digest import Digest
from registry.errors import Invalid, NotFound
from registry.hub.shapes import LIBRARY, File, Repository
from registry.manifest import Descriptor, Manifest
from registry.names import AdapterName
from registry.server.actors import Actor
from registry.server.catalog import files, versions
from registry.server.catalog import search as adapters
from registry.server.catalog.search import Search
from registry.server.database.models import AdapterRow, AliasRow, BaseRow, NamespaceRow, VersionRow

_BASE_FILTERS = ("base_model:adapter:", "base_model:")
_LIBRARIES = TEXT_SCHEMES | IMAGE_SCHEMES | {LIBRARY}
_METHODS = images.METHODS | {method.lower() for method in METHODS}
_EVERYWHERE = frozenset({"safetensors"})
"""Tags that each of our adapters has; what filters by them filters nothing."""


def name(namespace: str, word: str) -> AdapterName:
    """A repository's name; case does not count. `NotFound` for one that no adapter can have."""
    try:
        return AdapterName(namespace.lower(), word.lower())
    except Invalid:
        raise no_repository(f"{namespace}/{word}") from None


def no_repository(text: str) -> NotFound:
    return NotFound("ADAPTER_UNKNOWN", f"there is no adapter {text[:200]!r}, or you may not see it")


def version(session: Session, actor: Actor, name: AdapterName, revision: str) -> VersionRow:
    """The version at a branch, tag or commit id. `NotFound`; `Refused` (YANKED) as for any alias."""
    picked = dialect.revision(revision)
    if isinstance(picked, dialect.Commit):
        return _at_commit(session, actor, name, picked)
    if picked is None:
        versions.adapter_row(session, actor, name)
        raise NotFound("VERSION_UNKNOWN", f"adapter '{name}' has no revision {revision[:200]!r}")
    fixed = isinstance(picked, int | Digest)
    return versions.find(session, actor, name, picked, yanked_too=fixed)


def _at_commit(session: Session, actor: Actor, name: AdapterName, commit: dialect.Commit) -> VersionRow:
    adapter = versions.adapter_row(session, actor, name)
    begins = col(VersionRow.digest).startswith(f"sha256:{commit.digits}")
    rows = session.exec(select(VersionRow).where(VersionRow.adapter_id == adapter.id, begins).limit(2)).all()
    if len(rows) != 1:
        which = "several versions" if rows else "no version"
        raise NotFound("VERSION_UNKNOWN", f"adapter '{name}' has {which} whose id begins with {commit.digits}")
    return rows[0]


def file(session: Session, actor: Actor, name: AdapterName, row: VersionRow, path: str) -> Descriptor:
    """One file of a version. `NotFound` (BLOB_UNKNOWN)."""
    try:
        return files.find(session, actor, name, Digest(row.digest), path)
    except Invalid:
        raise no_file(name, row, path) from None


def no_file(name: AdapterName, row: VersionRow, path: str, what: str = "file") -> NotFound:
    return NotFound("BLOB_UNKNOWN", f"version {row.number} of '{name}' has no {what} {path[:200]!r}")


def repository(session: Session, name: AdapterName, row: VersionRow, actor: Actor) -> Repository:
    """The version as a repository, its files without git ids."""
    base = session.exec(select(BaseRow.name).where(BaseRow.id == row.base_id)).one()
    return _repository(name, row, actor, base)


def _repository(name: AdapterName, row: VersionRow, actor: Actor, base: str) -> Repository:
    manifest = Manifest.model_validate_json(row.manifest)
    return Repository(
        name=str(name),
        digest=row.digest,
        base=base,
        created_at=row.created_at,
        updated_at=row.created_at,
        private=name.namespace not in actor.public,
        size_bytes=row.size_bytes,
        library=str(row.facts.get("scheme") or LIBRARY),
        method=row.method,
        annotations=manifest.annotations,
        files=[File(descriptor) for descriptor in manifest.files],
    )


def references(session: Session, actor: Actor, name: AdapterName) -> tuple[dict[str, str], dict[int, str]]:
    """Alias → digest, and number → digest."""
    adapter = versions.adapter_row(session, actor, name)
    pointing = select(AliasRow.alias, VersionRow.digest).join(VersionRow, col(VersionRow.id) == AliasRow.version_id)
    aliases = dict(session.exec(pointing.where(AliasRow.adapter_id == adapter.id)).all())
    numbers = select(VersionRow.number, VersionRow.digest).where(VersionRow.adapter_id == adapter.id)
    return aliases, dict(session.exec(numbers).all())


def commits(
    session: Session, actor: Actor, name: AdapterName, row: VersionRow, limit: int, cursor: str
) -> tuple[Sequence[VersionView], str]:
    """This version and those before it, newest first; and the cursor of what follows."""
    page = versions.versions(session, actor, name, cursor=cursor or str(row.number + 1), limit=limit)
    return page.items, page.next_cursor


def search(
    session: Session, actor: Actor, filters: Sequence[str], *, author: str, text: str, cursor: str, limit: int
) -> tuple[list[Repository], str]:
    """Adapters that carry every tag of `filters`, at their newest version; and the cursor of what follows."""
    asked = _asked(filters, author, text)
    if asked is None:
        return [], ""
    page = adapters.page(session, actor, asked, cursor=cursor, limit=limit)
    named = [(AdapterName.parse(item.name), item) for item in page.items]
    rows = _versions(session, [(name, item.newest) for name, item in named])
    return [_repository(name, rows[name], actor, item.base) for name, item in named], page.next_cursor


def _versions(session: Session, wanted: Sequence[tuple[AdapterName, int]]) -> dict[AdapterName, VersionRow]:
    keys = tuple_(col(AdapterRow.namespace), col(AdapterRow.name), col(VersionRow.number))
    joined = select(AdapterRow, VersionRow).join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
    found = session.exec(joined.where(keys.in_([(name.namespace, name.name, number) for name, number in wanted])))
    return {AdapterName(adapter.namespace, adapter.name): version for adapter, version in found}


def _asked(filters: Sequence[str], author: str, text: str) -> Search | None:
    """The search that these filters mean; None when no adapter can carry all of them."""
    bases, tags, schemes, methods = set[str](), list[str](), set[str](), set[str]()
    for word in filters:
        prefix = next((p for p in _BASE_FILTERS if word.startswith(p)), "")
        if prefix:
            bases.add(word.removeprefix(prefix))
        elif word in _LIBRARIES:
            schemes.add(word)
        elif word.lower() in _METHODS:
            methods.add(word)
        elif word not in _EVERYWHERE:
            tags.append(word.replace(":", "=", 1))
    if max(len(bases), len(schemes), len(methods)) > 1:
        return None
    try:
        namespace = AdapterName(author.lower(), "any").namespace if author else ""
        base = str(names.base_name(bases.pop())) if bases else ""
    except Invalid:
        return None
    return Search(
        namespace=namespace, base=base, text=text, scheme="".join(schemes), method="".join(methods), tags=tuple(tags)
    )


def holds_namespace(session: Session, namespace: str) -> bool:
    """Whether this registry has the namespace, whoever asks: what it holds is never asked of another one."""
    if session.get(NamespaceRow, namespace.lower()) is not None:
        return True
    wanted = select(AdapterRow.id).where(AdapterRow.namespace == namespace.lower()).limit(1)
    return session.exec(wanted).first() is not None
