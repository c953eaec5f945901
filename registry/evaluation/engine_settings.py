"""`EngineSettings`: what to set on an engine so that it serves all adapters of a base."""

from registry.model import FrozenModel


class EngineSettings(FrozenModel):
    """The settings. Sizes are bytes before tensor parallelism. `raised_by`: the adapters with the largest rank.

    `*_without_largest`: the same without those; 0 if there are no others. `left_out`: adapters that the engine does not
    serve in this profile, whatever rank and slots are. `unknown`: adapters whose verdict is unknown.
    """

    profile: str
    adapters: int
    left_out: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    max_rank: int = 0
    max_rank_without_largest: int = 0
    rank_limit: int = 0
    rank_limit_without_largest: int = 0
    raised_by: tuple[str, ...] = ()
    slots: int = 0
    modules: tuple[str, ...] = ()
    bytes_per_slot: int = 0
    bytes_per_slot_without_largest: int = 0
    flags: tuple[str, ...] = ()
