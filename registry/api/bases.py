"""REST schemas of base models."""

from datetime import datetime

from pydantic import Field

from registry.api.models import ItemPage, PrintableText, Request, Response
from registry.bases import BaseSpec, Similarity
from registry.bases.identity import MARKS_LIMIT, Identity
from registry.bases.library import LibraryModules
from registry.digest import Digest
from registry.versions.manifest import Edge

IDENTITY_BODY_BYTES = MARKS_LIMIT * 768
"""A mark has up to 500 bytes of JSON under a long name."""


class BaseAdd(Request):
    """A new base."""

    spec: BaseSpec
    identity: Identity | None = None
    source: PrintableText = Field(default="", max_length=1000)
    parents: list[Edge] = Field(default=[], max_length=8)


class ModulesRequest(Request):
    """The modules of a base as a library on a worker builds them."""

    modules: LibraryModules


class IdentityRequest(Request):
    """Which weights a base has: to store it, or to compare it with that of a base."""

    identity: Identity


class BaseAliases(Request):
    """All other names of a base, in place of the former ones."""

    aliases: list[str] = Field(max_length=32)


class ThresholdsRequest(Request):
    """What smoke tests on a base use instead of the defaults."""

    thresholds: dict[str, float] = Field(max_length=50)


class BaseView(Response):
    """A base. A list leaves out `relatives` and `thresholds`, and on request the modules of the spec."""

    name: str
    fingerprint: Digest
    spec: BaseSpec
    source: str
    adapters: int = 0
    created_at: datetime
    created_by: str
    relatives: list[Similarity] = []
    parents: list[Edge] = []
    aliases: list[str] = []
    thresholds: dict[str, float] = {}


class BasePage(ItemPage[BaseView]):
    """A page of bases, by name."""
