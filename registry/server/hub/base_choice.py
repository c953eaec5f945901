"""The base of an adapter that a Hub client pushes: clients of the Hub cannot name one."""

from __future__ import annotations

from collections.abc import Iterable

from sqlmodel import Session, col, select

from registry.adapters.card import read as read_card
from registry.adapters.peft.config import BaseClaim
from registry.errors import NotFound
from registry.manifest import BaseRef, Manifest
from registry.server.catalog import base_rows
from registry.server.database.models import BaseRow, VersionRow


def choose_base(session: Session, claim: BaseClaim, card: bytes, parent: VersionRow | None) -> BaseRef:
    """The base that the files name: the configuration, else the README, else that of the parent version.

    `NotFound` (BASE_UNKNOWN) if what they name is not registered.
    """
    claims = [claim, *(BaseClaim(name=name) for name in read_card(card).bases)]
    named = [each for each in claims if each.name]
    for each in named:
        base = _find(session, each)
        if base is not None:
            return BaseRef(name=base.name, fingerprint=base.fingerprint)
    if parent is not None and (not named or claim.is_local):
        return Manifest.model_validate_json(parent.manifest).base
    if not named:
        raise NotFound(
            "BASE_UNKNOWN", "neither the configuration nor README.md names the base of this adapter",
            next_step="set `base_model` in README.md to the name of a registered base",
        )  # fmt: skip
    raise NotFound(
        "BASE_UNKNOWN",
        f"the base {named[0].name[:200]!r} is not registered here",
        next_step=f"an administrator registers it with `adapter base add {named[0].name[:200]} DIR`; then push again",
    )


def _find(session: Session, claim: BaseClaim) -> BaseRow | None:
    """The base of this name or alias, else the only one of this last part without an organization."""
    base = base_rows.find_named(session, claim.name)
    if base is not None:
        return base
    matching = _select(claim, session.exec(select(BaseRow.name).order_by(col(BaseRow.name))).all())
    return base_rows.find_named(session, matching[0]) if len(matching) == 1 else None


def _select(claim: BaseClaim, bases: Iterable[str]) -> list[str]:
    return [name for name in bases if claim.selects(name)]
