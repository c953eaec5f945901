"""The text index: which words an adapter has in its name, its metadata, its card and its trigger words.

- One row an adapter. What belongs to a version is that of the newest one; a version in quarantine adds no words.
- This module splits texts into words, for both databases alike: an index of FTS5 on SQLite and of tsvectors on
  PostgreSQL only looks words up. Sizes are limited before a row is written.
- A push writes the words of its version. After a withdrawal, and for adapters of earlier releases, they are missing
  (`version_id` is empty) until `index_newest` reads the card: after the next push, or in `gc`.
"""

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Engine,
    and_,
    bindparam,
    exists,
    insert,
    literal,
    literal_column,
    or_,
    update,
)
from sqlmodel import Session, col, select

from registry.digest import Digest
from registry.errors import Invalid, NotFound
from registry.names import NEWEST, AdapterName
from registry.server.catalog import metadata
from registry.server.database import db, dialects
from registry.server.database.expressions import any_of
from registry.server.database.models import (
    FACT,
    AdapterMetadataRow,
    AdapterRow,
    AdapterTextRow,
    AliasRow,
    VersionAttributeRow,
    VersionFileRow,
    VersionMetadataRow,
    VersionRow,
)
from registry.server.storage.blobs import BlobStore, key_of
from registry.versions.files import CARD

CARD_LIMIT_BYTES = 32 * 2**10
WORDS_LIMIT = 1000
WORD_CHARACTERS = 40
QUERY_WORDS_LIMIT = 12
PREFIX_CHARACTERS = 2
"""Words of a query that are shorter match whole words only."""
SUGGESTED_WORDS, NAMES_COMPARED = 3, 500
"""How much a suggestion of another spelling looks at."""
BATCH = 100
_IDEOGRAPHS = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts without spaces: each character is a word."""
_WORDS = f"[{_IDEOGRAPHS}]|[^\\W_{_IDEOGRAPHS}]+"  # compiled by a push and a search, not by each list
_TEXT: Any = AdapterTextRow.__table__  # type: ignore[attr-defined]
_ALL_WORDS = col(AdapterTextRow.name_words) + col(AdapterTextRow.tag_words) + col(AdapterTextRow.card_words) + " "
_NEWEST_VERSION = (
    select(AliasRow.version_id)
    .where(col(AliasRow.adapter_id) == col(AdapterTextRow.adapter_id), col(AliasRow.alias) == NEWEST)
    .correlate(AdapterTextRow)
    .scalar_subquery()
)


# ------------------------------------------------------------------ words
def split_words(text: str) -> Iterator[str]:
    """The words of a text, in lower case and without accents; of long ones the first `WORD_CHARACTERS`.

    >>> list(split_words("Crème brûlée: acme/Support-FR, 客服"))
    ['creme', 'brulee', 'acme', 'support', 'fr', '客', '服']
    """
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    for match in re.finditer(_WORDS, plain):
        yield match[0][:WORD_CHARACTERS]


def join_words(texts: Iterable[str]) -> str:
    """The first `WORDS_LIMIT` different words of these texts, as they are stored: each after a space.

    >>> join_words(["a b", "b c"])
    ' a b c'
    """
    words: dict[str, None] = {}
    for text in texts:
        for word in split_words(text):
            words[word] = None
            if len(words) >= WORDS_LIMIT:
                return _store(words)
    return _store(words)


def _store(words: Iterable[str]) -> str:
    return "".join(f" {word}" for word in words)


def card_words(card: bytes, facts: Mapping[str, Any], annotations: Mapping[str, str]) -> str:
    """The words of a version: its trigger words, its annotations, and the beginning of its README."""
    texts = [str(facts.get("trigger_words") or ""), *(f"{key} {value}" for key, value in annotations.items())]
    return join_words([*texts, card[:CARD_LIMIT_BYTES].decode("utf-8", "replace")])


# ------------------------------------------------------------------ search
@dataclass(frozen=True, slots=True)
class TextMatch:
    """How to find the adapters that have a word that begins with each word of a query.

    `selection`: their ids, from the index. `to_list`, `to_count`: conditions on `adapter`, to list page by page and to
    count. A list that is read in its order compares the words of each adapter.
    """

    selection: Any
    to_list: ColumnElement[bool]
    to_count: ColumnElement[bool]


def match_text(session: Session, text: str, visible: ColumnElement[bool]) -> TextMatch:
    """`Invalid` for too many words. `visible`: adapters that may not be seen are not in the selection."""
    words = list(dict.fromkeys(split_words(text)))
    if len(words) > QUERY_WORDS_LIMIT:
        raise Invalid("REQUEST_INVALID", f"text: has {len(words)} words, the limit is {QUERY_WORDS_LIMIT}")
    if not words:
        return TextMatch(select(col(AdapterRow.id)).where(literal(False)), literal(False), literal(False))
    dialect = dialects.of(session)
    adapter_id, matches = dialect.look_up([(word, _is_prefix(word)) for word in words])
    sought = (f" {word}" if _is_prefix(word) else f" {word} " for word in words)
    compared = (dialect.position_of(_ALL_WORDS, text) > 0 for text in sought)
    return TextMatch(
        select(col(AdapterRow.id)).where(adapter_id == col(AdapterRow.id), matches, visible),
        exists().where(col(AdapterTextRow.adapter_id) == col(AdapterRow.id), *compared),
        col(AdapterRow.id).in_(select(adapter_id).where(matches)),
    )


def suggest(session: Session, text: str, visible: ColumnElement[bool]) -> str:
    """The text with each word as it is spelled in a name, if one begins alike and is near; empty if all stay."""
    words = list(split_words(text))[:SUGGESTED_WORDS]
    nearest = [_find_nearest(session, word, visible) for word in words]
    return " ".join(nearest) if nearest != words else ""


def _find_nearest(session: Session, word: str, visible: ColumnElement[bool]) -> str:
    alike = match_text(session, word[:PREFIX_CHARACTERS], visible).selection.limit(NAMES_COMPARED)
    ids = session.connection().execute(alike).scalars().all()
    names = session.exec(select(AdapterTextRow.name_words).where(any_of(col(AdapterTextRow.adapter_id), ids)))
    spelled = {word for words in names for word in words.split()}
    return next(iter(difflib.get_close_matches(word, sorted(spelled), n=1, cutoff=0.75)), word)


def _is_prefix(word: str) -> bool:
    return len(word) >= PREFIX_CHARACTERS


# ------------------------------------------------------------------ writing
_COLUMNS = ("version_id", "tag_words", "card_words")
_PUSHED: Any = tuple((name, literal_column(f"excluded.{name}")) for name in _COLUMNS)
_NAMED: Any = (("name_words", literal_column("excluded.name_words")),)
_KEY = (col(AdapterTextRow.adapter_id),)


def add_versions(session: Session, pushed: Sequence[tuple[VersionRow, AdapterName, str]]) -> None:
    """Write the `card_words` of versions that were just pushed; of several of one adapter the last one counts."""
    rows = {
        version.adapter_id: {
            "adapter_id": version.adapter_id, "name_words": join_words([str(name)]), "tag_words": "",
            "version_id": version.id, "card_words": words,
        }
        for version, name, words in pushed
    }  # fmt: skip
    db.upsert(session, AdapterTextRow, [rows[key] for key in sorted(rows)], on_conflict=_PUSHED, returning=_KEY)


def update_names(session: Session, adapter_ids: Collection[int]) -> None:
    """Replace the words of these adapters' names and metadata, after a change."""
    if not adapter_ids:
        return
    rows = [
        {"adapter_id": adapter_id, "name_words": words, "tag_words": "", "card_words": "", "version_id": None}
        for adapter_id, words in sorted(_read_name_words(session, adapter_ids).items())
    ]
    db.upsert(session, AdapterTextRow, rows, on_conflict=_NAMED, returning=_KEY)


def _read_name_words(session: Session, adapter_ids: Collection[int]) -> dict[int, str]:
    ids = sorted(adapter_ids)
    adapters = select(AdapterRow.id, AdapterRow.namespace, AdapterRow.name).where(any_of(col(AdapterRow.id), ids))
    described = metadata.read(session, AdapterMetadataRow, ids)
    return {
        adapter_id or 0: join_words([namespace, name, *_metadata_texts(described[adapter_id or 0])])
        for adapter_id, namespace, name in session.exec(adapters)
    }


def update_tags(session: Session, version_ids: Collection[int]) -> None:
    """Replace the words of the metadata of those versions that are in the index."""
    if not version_ids:
        return
    described = metadata.read(session, VersionMetadataRow, sorted(version_ids))
    rows = [
        {"of_version": version_id, "words": join_words(_metadata_texts(fields))}
        for version_id, fields in described.items()
    ]
    statement = _TEXT.update().where(col(AdapterTextRow.version_id) == bindparam("of_version"))
    db.update_rows(session, statement.values(tag_words=bindparam("words")), rows)


def _metadata_texts(fields: Mapping[str, Any]) -> list[str]:
    return [fields["description"], *(f"{key} {value}" for key, value in fields["tags"].items())]


def forget_version(session: Session, version: VersionRow) -> None:
    """Remove the words of an adapter's version from the index if this one is in it, or is not and should be."""
    own = (col(AdapterTextRow.adapter_id) == version.adapter_id,
           or_(col(AdapterTextRow.version_id) == version.id, _is_outdated()))  # fmt: skip
    session.connection().execute(update(AdapterTextRow).where(*own).values(_EMPTY))


_EMPTY = {"version_id": None, "tag_words": "", "card_words": ""}


def _is_outdated() -> ColumnElement[bool]:
    return col(AdapterTextRow.version_id) != _NEWEST_VERSION


def mark_outdated(engine: Engine) -> None:
    """Prepare `index_newest` for adapters without a row, and for those with the words of another version.

    Servers of earlier releases leave them when they push.
    """
    with db.session(engine) as session:
        row = exists().where(col(AdapterTextRow.adapter_id) == col(AdapterRow.id))
        missing = select(AdapterRow.id, literal(""), literal(""), literal("")).where(~row)
        columns = ["adapter_id", "name_words", "tag_words", "card_words"]
        session.connection().execute(insert(AdapterTextRow).from_select(columns, missing))
        session.connection().execute(update(AdapterTextRow).where(_is_outdated()).values(_EMPTY))


def index_newest(engine: Engine, blobs: BlobStore) -> int:
    """Index up to `BATCH` adapters whose newest version is not in the index; return how many."""
    with db.session(engine, write=False) as session:
        pending = session.exec(
            select(AdapterTextRow.adapter_id, VersionRow, VersionFileRow.digest)
            .select_from(AdapterTextRow)
            .join(VersionRow, col(VersionRow.id) == _NEWEST_VERSION)
            .outerjoin(VersionFileRow, and_(col(VersionFileRow.version_id) == col(VersionRow.id),
                                            col(VersionFileRow.path) == CARD))
            .where(col(AdapterTextRow.version_id).is_(None))
            .limit(BATCH)
        ).all()  # fmt: skip
    for adapter_id, version, digest in pending:
        card = _read_card(blobs, digest) if digest is not None and version.quarantined_at is None else b""
        with db.session(engine) as session:
            _index_version(session, adapter_id, version, card)
    return len(pending)


def _read_card(blobs: BlobStore, digest: str) -> bytes:
    """The beginning of a README; nothing if its bytes are lost. An outage is raised."""
    try:
        return blobs.read(key_of(Digest(digest)), 0, CARD_LIMIT_BYTES)
    except (Invalid, NotFound):
        return b""


def _index_version(session: Session, adapter_id: int, version: VersionRow, card: bytes) -> None:
    """Write the words of an adapter and its version, unless the version is not the newest any more.

    The version is locked: it may have been withdrawn while its card was read, or is withdrawn now and waits.
    """
    version_id = version.id or 0
    of_version = select(VersionRow.quarantined_at).where(col(VersionRow.id) == version_id).with_for_update()
    is_withheld = any(quarantined_at is not None for quarantined_at in session.exec(of_version))
    names = _read_name_words(session, [adapter_id])
    words = {} if is_withheld else _read_version_words(session, version, card)
    own = (col(AdapterTextRow.adapter_id) == adapter_id, col(AdapterTextRow.version_id).is_(None),
           literal(version_id) == _NEWEST_VERSION)  # fmt: skip
    session.connection().execute(
        update(AdapterTextRow)
        .where(*own)
        .values(_EMPTY | words | {"version_id": version_id, "name_words": names.get(adapter_id, "")})
    )


def _read_version_words(session: Session, version: VersionRow, card: bytes) -> dict[str, str]:
    version_id = version.id or 0
    tags = _metadata_texts(metadata.read(session, VersionMetadataRow, [version_id])[version_id])
    attributes = select(VersionAttributeRow.key, VersionAttributeRow.value).where(
        VersionAttributeRow.version_id == version_id, ~col(VersionAttributeRow.key).startswith(FACT, autoescape=True)
    )
    words = card_words(card, version.facts, dict(session.exec(attributes).all()))
    return {"tag_words": join_words(tags), "card_words": words}
