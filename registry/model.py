"""`FrozenModel`: the base of every data type of the domain that is validated and sent between machines."""

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """Immutable; unknown fields are refused; infinity and NaN are texts in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", defer_build=True)
