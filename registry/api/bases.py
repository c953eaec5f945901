"""The REST contract of registering bases: add one, tell which weights it has, and what smoke tests on it take.

Invariants
- What a base is and which weights it has is told once; its thresholds may change.
"""

from __future__ import annotations

from pydantic import Field

from registry.api import Request
from registry.bases import BaseSpec
from registry.bases.identity import Identity
from registry.manifest import Edge


class BaseAdd(Request):
    """`identity` tells which weights the base has, where somebody has read them all. `parents`: fused adapters."""

    spec: BaseSpec
    identity: Identity | None = None
    source: str = Field(default="", max_length=1000)
    parents: list[Edge] = Field(default=[], max_length=8)


class IdentityGiven(Request):
    """PUT /bases/{base}/identity keeps it; POST /bases/{base}/similarity compares it with the base's."""

    identity: Identity


class ThresholdsGiven(Request):
    """PUT /bases/{base}/thresholds: what a smoke test on this base takes instead of the defaults; empty for none."""

    thresholds: dict[str, float] = Field(max_length=50)
