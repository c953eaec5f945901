"""`RetentionRule`: which versions of an adapter stay, and how a rule reads in words.

Example
    >>> RetentionRule(keep_newest=3, keep_seconds=7 * 86400).text
    'keep the newest 3, and what is younger than 7 days'
"""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, model_validator

from registry.durations import SECONDS_LIMIT, duration
from registry.model import FrozenModel

NEWEST_LIMIT = 10**6


class RetentionRule(FrozenModel):
    """A version stays if it is among the newest, or younger than the age, or needed. At least one of both is set."""

    keep_newest: int | None = Field(default=None, ge=1, le=NEWEST_LIMIT)
    """Number of newest versions that are kept, whatever their age. Null: none is kept for being new."""
    keep_seconds: int | None = Field(default=None, ge=1, le=SECONDS_LIMIT)
    """Versions younger than this are kept. Null: none is kept for its age."""

    @model_validator(mode="after")
    def _check(self) -> RetentionRule:
        if self.keep_newest is None and self.keep_seconds is None:
            raise ValueError("a retention rule needs keep_newest or keep_seconds")
        return self

    @property
    def keep_age(self) -> timedelta | None:
        """The age below which a version stays."""
        return None if self.keep_seconds is None else timedelta(seconds=self.keep_seconds)

    @property
    def text(self) -> str:
        """The rule in words."""
        newest = "" if self.keep_newest is None else f"the newest {self.keep_newest}"
        younger = "" if self.keep_seconds is None else f"what is younger than {duration(self.keep_seconds)}"
        return "keep " + ", and ".join(part for part in (newest, younger) if part)
