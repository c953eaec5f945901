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
    """What the registry must know about the base: sizes, modules, fingerprints."""
    identity: Identity | None = None
    """Which weights the base has; null if they were not read."""
    source: PrintableText = Field(default="", max_length=1000)
    """Where the base came from, such as a repository id or a folder."""
    parents: list[Edge] = Field(default=[], max_length=8)
    """Adapters that were fused into this base."""


class ModulesRequest(Request):
    """The modules of a base as a library on a worker builds them."""

    modules: LibraryModules
    """The modules as the library builds them."""


class IdentityRequest(Request):
    """Which weights a base has: to store it, or to compare it with that of a base."""

    identity: Identity
    """Which weights the base has."""


class BaseAliases(Request):
    """All other names of a base, in place of the former ones."""

    aliases: list[str] = Field(max_length=32)
    """All other names of the base; they replace the former ones."""


class ThresholdsRequest(Request):
    """What smoke tests on a base use instead of the defaults."""

    thresholds: dict[str, float] = Field(max_length=50)
    """Name of a threshold → its value, for smoke tests on this base. Empty: the defaults."""


class BaseView(Response):
    """A base. A list leaves out `relatives` and `thresholds`, and on request the modules of the spec."""

    name: str
    """Name of the base in this registry."""
    fingerprint: Digest
    """Digest of the architecture: tensor names, shapes, and what changes the computation."""
    spec: BaseSpec
    """What the registry knows about the base."""
    source: str
    """Where the base came from, such as a repository id or a folder."""
    adapters: int = 0
    """Number of adapters of this base."""
    created_at: datetime
    """When it was created."""
    created_by: str
    """Identity whose token created it."""
    relatives: list[Similarity] = []
    """Other bases with known weights, and how they are related; `unknown` also beyond the pairs that are compared. Not
    in lists."""
    parents: list[Edge] = []
    """Adapters that were fused into this base."""
    aliases: list[str] = []
    """Other names of the same model."""
    thresholds: dict[str, float] = {}
    """What smoke tests on this base use instead of the defaults. Not in lists."""


class BasePage(ItemPage[BaseView]):
    """A page of bases, by name."""

    items: list[BaseView]
    """Base models by name."""
