"""REST schemas of the desired state: the adapter versions that nodes serving a base should load.

Invariants
- One answer has everything that a node needs: files by digest, served names, verdicts, engine settings.
- Equal cursors mean equal desired states. The cursor is the ETag; `wait` delays the answer until it differs.
"""

from __future__ import annotations

from registry.api import Answer, FileLink
from registry.digest import Digest
from registry.engine_settings import EngineSettings
from registry.evaluation.verdicts import Finding, Outcome


class DesiredAdapter(Answer):
    """One adapter of the desired state: the version that the alias points at, with its files and verdicts.

    `served_name` is unique and belongs to the version, not to the adapter: an engine never sees other weights under a
    name it knows. `engine_outcome` and `findings` are about the requested engine, if any.
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
    """GET /bases/{base}/adapters: the versions that an alias of every adapter of a base points at, without yanked ones.

    `ranks`: adapters by rank. `settings`: recommended settings of the requested engine.
    """

    base: str
    base_fingerprint: str
    alias: str
    cursor: str
    adapters: list[DesiredAdapter]
    ranks: dict[str, int]
    settings: EngineSettings | None = None
