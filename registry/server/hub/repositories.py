"""Adapters as repositories of the Hub API: their revisions, files, references, commits, git ids, and the list of them.

- The catalog decides who sees what. By an alias a yanked version is refused; by a tag or commit id it is returned.
- A path or name that is not valid here is absent, not malformed: clients probe for files and cache what is absent.
- Git ids are computed when they are first requested, and stored per version, although they depend on the bytes only.
  Otherwise the first response would be faster if another tenant's version of the same bytes was requested before.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Engine, tuple_, update
from sqlmodel import Session, col, select

from registry import hub, names
from registry.adapters.card import labels_of
from registry.adapters.formats import FORMATS, images
from registry.adapters.methods import METHODS
from registry.digest import Digest
from registry.errors import Corrupt, Invalid, NotFound
from registry.hub.shapes import LIBRARY, File, Repository
from registry.names import AdapterName, is_alias
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import files, versions
from registry.server.catalog.search import adapters as catalog_search
from registry.server.catalog.search.filters import Search
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseRow, VersionFileRow, VersionRow
from registry.server.storage.blobs import BlobStore
from registry.versions.manifest import Descriptor, Manifest

_BASE_FILTERS = ("base_model:adapter:", "base_model:")
_LIBRARIES = FORMATS.keys() | {LIBRARY}
_METHODS = images.METHODS | {method.lower() for method in METHODS}
_COMMON_TAGS = frozenset({"safetensors"})
"""Tags that all adapters have, so that filtering by them has no effect."""
_OWN_WORDS = _LIBRARIES | _METHODS | _COMMON_TAGS
"""Tags that follow from the files, whatever a card says."""


def parse_name(namespace: str, name: str) -> AdapterName:
    """Return a repository's name, ignoring case. `NotFound` for a name that no adapter can have."""
    try:
        return AdapterName(namespace.lower(), name.lower())
    except Invalid:
        raise unknown_repository(f"{namespace}/{name}") from None


def default_namespace(actor: Actor) -> str:
    """Return the namespace of repositories that are named without one: the only one to push to, else nothing."""
    namespaces = actor.namespaces_with(Scope.PUSH) or frozenset()
    return next(iter(namespaces)) if len(namespaces) == 1 else ""


def unknown_repository(name: str) -> NotFound:
    """The error for a repository that does not exist or that the actor may not see."""
    return NotFound("ADAPTER_UNKNOWN", f"there is no adapter {name[:200]!r}, or you may not see it")


def find_version(session: Session, actor: Actor, name: AdapterName, revision: str) -> VersionRow:
    """Return the version at a branch, tag or commit id. `NotFound`; `Refused` (YANKED) for an alias."""
    selector = hub.revision(revision)
    if selector is None:
        versions.find_adapter(session, actor, name)
        raise NotFound("VERSION_UNKNOWN", f"adapter '{name}' has no revision {revision[:200]!r}")
    return versions.find(session, actor, name, selector, include_withdrawn=not is_alias(selector))


def find_file(session: Session, actor: Actor, name: AdapterName, row: VersionRow, path: str) -> Descriptor:
    """Return one file of a version. `NotFound` (BLOB_UNKNOWN)."""
    try:
        return files.find_file(session, actor, name, Digest(row.digest), path)
    except Invalid:
        raise unknown_file(name, row, path) from None


def has_adapter(session: Session, name: AdapterName) -> bool:
    """Whether there is an adapter of this name."""
    return session.exec(select(AdapterRow.id).where(versions.has_name(name))).first() is not None


def find_sizes(session: Session, actor: Actor, name: AdapterName, digest: Digest) -> list[int]:
    """Return the size of a blob, in a list, if a version of this adapter has it."""
    if not actor.sees(name):
        return []
    sizes = select(VersionFileRow.size_bytes).join(VersionRow, col(VersionRow.id) == col(VersionFileRow.version_id))
    sizes = sizes.join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    return list(session.exec(sizes.where(versions.has_name(name), VersionFileRow.digest == digest).limit(1)).all())


def unknown_file(name: AdapterName, row: VersionRow, path: str, kind: str = "file") -> NotFound:
    """The error for a file or folder that a version does not have."""
    return NotFound("BLOB_UNKNOWN", f"version {row.number} of '{name}' has no {kind} {path[:200]!r}")


def describe_repository(session: Session, name: AdapterName, row: VersionRow, actor: Actor) -> Repository:
    """Return a version as a repository. Its files have no git ids yet."""
    of_version = select(BaseRow.name, AdapterRow.created_at).join(
        VersionRow, col(VersionRow.base_id) == col(BaseRow.id)
    )
    of_version = of_version.join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    base, created_at = session.exec(of_version.where(VersionRow.id == row.id)).one()
    return _repository(name, row, actor, base, created_at)


def _repository(name: AdapterName, row: VersionRow, actor: Actor, base: str, created_at: datetime) -> Repository:
    """`updated_at` is the time of the revision's commit, so that of a branch moves with its alias."""
    manifest, claims = Manifest.model_validate_json(row.manifest), row.facts.get("card") or {}
    return Repository(
        name=str(name),
        digest=row.digest,
        base=base,
        created_at=created_at,
        updated_at=row.created_at,
        private=name.namespace not in actor.public,
        size_bytes=row.size_bytes,
        library=str(row.facts.get("format") or LIBRARY),
        card=claims.get("labels") or {},
        labels=[label for label in labels_of(claims) if not _is_own(label)],
        dtypes=row.facts.get("dtypes") or (),
        parameters=row.facts.get("parameters") or 0,
        method=row.method,
        annotations=manifest.annotations,
        files=[File(descriptor) for descriptor in manifest.files],
    )


def _is_own(label: str) -> bool:
    """Whether the registry knows by itself what this tag says."""
    return label.lower() in _OWN_WORDS or label.startswith(_BASE_FILTERS)


def search(
    session: Session, actor: Actor, filters: Sequence[str], *, author: str, text: str, cursor: str, limit: int
) -> tuple[list[Repository], str]:
    """Return adapters that have every tag of `filters`, at their newest version, and the cursor of the next page."""
    query = _search_query(filters, author, text)
    if query is None:
        return [], ""
    page = catalog_search.search_adapters(session, actor, query, cursor=cursor, limit=limit)
    items = [(AdapterName.parse(item.name), item) for item in page.items]
    rows = _version_rows(session, [(name, item.newest) for name, item in items])
    joined = [(name, item.base, *rows[name]) for name, item in items]
    repositories = [_repository(name, row, actor, base, adapter.created_at) for name, base, adapter, row in joined]
    return repositories, page.next_cursor


def _version_rows(
    session: Session, versions: Sequence[tuple[AdapterName, int]]
) -> dict[AdapterName, tuple[AdapterRow, VersionRow]]:
    key = tuple_(col(AdapterRow.namespace), col(AdapterRow.name), col(VersionRow.number))
    joined = select(AdapterRow, VersionRow).join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
    pairs = session.exec(joined.where(key.in_([(name.namespace, name.name, number) for name, number in versions])))
    return {AdapterName(adapter.namespace, adapter.name): (adapter, version) for adapter, version in pairs}


def _search_query(filters: Sequence[str], author: str, text: str) -> Search | None:
    """Translate the Hub's filters; None if no adapter can match all of them."""
    bases, labels, format_names, methods = set[str](), list[str](), set[str](), set[str]()
    for word in filters:
        prefix = next((p for p in _BASE_FILTERS if word.startswith(p)), "")
        if prefix:
            bases.add(word.removeprefix(prefix))
        elif word in _LIBRARIES:
            format_names.add(word)
        elif word.lower() in _METHODS:
            methods.add(word)
        elif word not in _COMMON_TAGS:
            labels.append(word)
    if max(len(bases), len(format_names), len(methods)) > 1:
        return None
    try:
        namespace = AdapterName(author.lower(), "any").namespace if author else ""
        base = str(names.base_name(bases.pop())) if bases else ""
        return Search(
            namespace=namespace, base=base, text=text, format="".join(format_names), method="".join(methods),
            label=labels,
        )  # fmt: skip
    except (Invalid, ValidationError):
        return None


def with_git_ids(
    engine: Engine, blobs: BlobStore, version_id: int | None, descriptors: Iterable[Descriptor]
) -> list[File]:
    """Return the files of a version with their git ids, in the same order. One statement if all ids are stored."""
    descriptors = list(descriptors)
    small = {file.digest: file for file in descriptors if not hub.is_large(file)}
    of_version = col(VersionFileRow.version_id) == version_id
    ids = _read_stored(engine, of_version, small)
    computed = {digest: _compute(blobs, file) for digest, file in small.items() if digest not in ids}
    if computed:
        with db.session(engine) as session:
            for digest, git_id in computed.items():
                statement = update(VersionFileRow).where(of_version, col(VersionFileRow.digest) == digest)
                session.execute(statement.values(git_sha1=git_id))
    ids |= computed
    return [File(file, ids.get(file.digest) or hub.git_id(hub.pointer(file))) for file in descriptors]


def _read_stored(engine: Engine, of_version: ColumnElement[bool], digests: Iterable[Digest]) -> dict[Digest, str]:
    digests = sorted(digests)
    if not digests:
        return {}
    statement = select(VersionFileRow.digest, VersionFileRow.git_sha1)
    statement = statement.where(of_version, col(VersionFileRow.digest).in_(digests))
    with db.session(engine, write=False) as session:
        return {Digest(digest): git_id for digest, git_id in session.exec(statement) if git_id}


def _compute(blobs: BlobStore, file: Descriptor) -> str:
    data = blobs.read(files.locate_bytes(blobs, file), 0, file.size_bytes)
    if Digest.of(data) != file.digest:
        raise Corrupt("DIGEST_MISMATCH", f"{file.path}: the stored bytes no longer hash to {file.digest}")
    return hub.git_id(data)
