"""`EngineSettings`: what to set on an engine so that it serves all adapters of a base."""

from registry.model import FrozenModel


class EngineSettings(FrozenModel):
    """The settings. Sizes are bytes before tensor parallelism. `raised_by`: the adapters with the largest rank.

    `*_without_largest`: the same without those; 0 if there are no others. `left_out`: adapters that the engine does not
    serve in this profile, whatever rank and slots are. `unknown`: adapters whose verdict is unknown.
    """

    profile: str
    """Engine with version and settings: `vllm==0.33.0,max_lora_rank=32`. Empty if there is none."""
    adapters: int
    """Number of adapters that the settings are for."""
    left_out: tuple[str, ...] = ()
    """Adapters that this version of the engine cannot serve, whatever its settings."""
    unknown: tuple[str, ...] = ()
    """Adapters without enough evidence to decide."""
    max_rank: int = 0
    """Largest rank among the adapters that the engine serves."""
    max_rank_without_largest: int = 0
    """The largest rank but `max_rank`. 0 if there is no other."""
    rank_limit: int = 0
    """Value for the engine's rank limit: the smallest that it allows and that is at least `max_rank`."""
    rank_limit_without_largest: int = 0
    """The same without the adapters in `raised_by`. 0 if there are no others."""
    raised_by: tuple[str, ...] = ()
    """Adapters with the largest rank. They alone raise the limit if it is lower without them."""
    slots: int = 0
    """Number of adapters that one batch can use."""
    modules: tuple[str, ...] = ()
    """Names of all modules that the adapters train."""
    bytes_per_slot: int = 0
    """Bytes of GPU memory that one slot takes at `rank_limit`, without tensor parallelism."""
    bytes_per_slot_without_largest: int = 0
    """The same at `rank_limit_without_largest`."""
    flags: tuple[str, ...] = ()
    """Command-line options of the engine."""
