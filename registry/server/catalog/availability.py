"""Withdrawn versions: what a yanked or a quarantined version still returns, and to whom.

    yanked         no alias resolves to it; its number and its digest still do
    quarantined    only its whole digest leads to its bytes, for those who may promote; nothing may be added to it
    deleted        nothing but a sentence that says so; its owner sees it in the list of deleted versions

Row, verdicts and history of a withdrawn version stay visible.
"""

from sqlalchemy import or_
from sqlmodel import col

from registry.digest import Digest
from registry.errors import NotFound, Refused
from registry.names import AdapterName, Selector, is_alias
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.database.models import VersionRow


def require_readable(actor: Actor, name: AdapterName, version: VersionRow, selector: Selector) -> None:
    """`Refused` (QUARANTINED, YANKED) unless this actor may read the bytes that this selector names."""
    require_not_deleted(name, version)
    if version.quarantined_at is not None:
        if isinstance(selector, Digest) and actor.may(Scope.PROMOTE, name.namespace, name.name):
            return
        raise quarantined_error(name, version)
    if version.yanked_at is not None and is_alias(selector):
        raise _yanked_error(name, version)


def require_available(name: AdapterName, version: VersionRow) -> None:
    """`Refused` (QUARANTINED, YANKED) if the version is withdrawn: nothing new may refer to it."""
    require_not_deleted(name, version)
    if version.quarantined_at is not None:
        raise quarantined_error(name, version)
    if version.yanked_at is not None:
        raise _yanked_error(name, version)


def require_not_deleted(name: AdapterName, version: VersionRow) -> None:
    """`NotFound` (VERSION_DELETED) if the version was deleted."""
    if version.deleted_at is not None:
        raise NotFound("VERSION_DELETED", deletion_message(name, version))


def deletion_message(name: AdapterName, version: VersionRow) -> str:
    """The sentence that stands for a deleted version."""
    return f"version {version.number} of '{name}' {deletion_text(version)}"


def deletion_text(version: VersionRow) -> str:
    """When, by whom and why it was deleted."""
    day = f"{version.deleted_at:%Y-%m-%d}" if version.deleted_at is not None else ""
    reason = f": {version.delete_reason}" if version.delete_reason else ""
    return f"was deleted on {day} by {version.deleted_by}{reason}"


WITHDRAWN = or_(col(VersionRow.yanked_at).is_not(None), col(VersionRow.quarantined_at).is_not(None))
"""The condition on `version` that it is yanked, in quarantine or deleted."""


def is_withdrawn(version: VersionRow) -> bool:
    """The same of a row."""
    return version.yanked_at is not None or version.quarantined_at is not None


def quarantined_error(name: AdapterName, version: VersionRow) -> Refused:
    """The error for a version in quarantine."""
    return Refused(
        "QUARANTINED",
        f"version {version.number} of '{name}' is in quarantine: {version.quarantine_reason}",
        next_step="use another version, or ask an owner of its namespace to lift the quarantine",
    )


def _yanked_error(name: AdapterName, version: VersionRow) -> Refused:
    return Refused(
        "YANKED",
        f"version {version.number} of '{name}' was yanked: {version.yank_reason}",
        next_step=f"use another version, or exactly this one by its digest: {name}@{version.digest}",
    )
