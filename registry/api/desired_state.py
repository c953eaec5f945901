"""The REST contract of what serving nodes shall serve: the roster of a base.

Invariants
- One answer holds everything that a node needs to fetch, load and set: files by digest, names to serve under, verdicts.
- Equal cursors mean equal rosters: the cursor is the answer's ETag, and `wait` holds the answer back until it differs.
"""

from __future__ import annotations

from registry.api import Answer, FileLink
from registry.digest import Digest
from registry.engine_settings import EngineSettings
from registry.evaluation.verdicts import Finding, Outcome


class RosterEntry(Answer):
    """One adapter of the roster: the version that the alias points at, and what is known of it.

    `served_name` is unique in the roster and belongs to the version, not to the adapter: an engine never sees other
    weights under a name it knows. `engine_outcome` and `findings` are of the engine that was asked for, if any.
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


class Roster(Answer):
    """GET /bases/{base}/adapters: what an alias of every adapter of a base points at, those that are yanked left out.

    `ranks`: how many adapters have which rank. `settings`: what to set on the engine that was asked for.
    """

    base: str
    base_fingerprint: str
    alias: str
    cursor: str
    adapters: list[RosterEntry]
    ranks: dict[str, int]
    settings: EngineSettings | None = None
