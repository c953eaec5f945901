"""`EngineSettings`: what to set on an engine so that it serves all adapters of a base."""

from __future__ import annotations

from registry.model import FrozenModel


class EngineSettings(FrozenModel):
    """The answer. Sizes are bytes before tensor parallelism; `raised_by` are the adapters with the largest rank.

    `left_out` the engine does not serve in this profile, whatever rank and slots are; `unsure`: its verdict is unknown.
    """

    profile: str
    adapters: int
    left_out: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    max_rank: int = 0
    rank_limit: int = 0
    rank_limit_without: int = 0
    raised_by: tuple[str, ...] = ()
    slots: int = 0
    modules: tuple[str, ...] = ()
    bytes_per_slot: int = 0
    bytes_per_slot_without: int = 0
    flags: tuple[str, ...] = ()
