"""REST schemas of the desired state of a base: what its serving nodes should serve.

It holds everything that a node needs to fetch, load and set. Equal cursors mean equal desired states: the cursor is the
ETag, and `wait` delays the answer until it changes.
"""

from __future__ import annotations

from registry.api import Answer
from registry.api.catalog import FileLink
from registry.digest import Digest
from registry.engine_settings import EngineSettings
from registry.evaluation.verdicts import Finding, Outcome


class DesiredAdapter(Answer):
    """One adapter of a desired state: the version that the alias points at.

    `served_name` is unique in the desired state and belongs to the version, not to the adapter: an engine never gets
    other weights under a name that it knows. `engine_outcome` and `findings` are for the engine of the request, if any.
    """

    name: str
    served_name: str
    number: int
    digest: Digest
    generation: int
    method: str
    rank: int | None
    size_bytes: int
    files: list[FileLink]
    verdicts: dict[str, str]
    engine_outcome: Outcome | None = None
    findings: list[Finding] = []


class DesiredState(Answer):
    """The versions that an alias of each adapter of a base points at, without yanked ones.

    `ranks`: rank → number of adapters. `settings`: what to set on the engine of the request.
    """

    base: str
    base_fingerprint: str
    alias: str
    cursor: str
    adapters: list[DesiredAdapter]
    ranks: dict[str, int]
    settings: EngineSettings | None = None
