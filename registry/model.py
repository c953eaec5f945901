"""`FrozenModel`: the base of every data type of the domain that is validated and sent between machines."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator

UNKNOWN_FIELDS_LIMIT = 20
"""How many unknown fields of one object are named, at most."""
_COLLECTIONS = ("list", "dict", "tuple", "set", "frozenset")
_SCALARS = ("bool", "int", "float")


class StrictModel(BaseModel):
    """No text and no number is a boolean, and nothing but a number is one: `"yes"` must not make a namespace public.

    Collections are read up to their first wrong entry: pydantic keeps 400 bytes for each error of a document.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema = handler(source)
        pending: list[Any] = [handler.resolve_ref_schema(schema)]
        while pending:
            part = pending.pop()
            if isinstance(part, dict):
                if part.get("type") in _COLLECTIONS:
                    part["fail_fast"] = True
                elif part.get("type") in _SCALARS:
                    part.setdefault("strict", True)
                pending += [value for key, value in part.items() if key not in ("metadata", "serialization")]
            elif isinstance(part, list | tuple):
                pending += part
        return schema

    @model_validator(mode="before")
    @classmethod
    def _has_few_unknown_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > UNKNOWN_FIELDS_LIMIT:
            most = len(cls.model_fields) + UNKNOWN_FIELDS_LIMIT
            if len(data) > most:
                raise ValueError(f"has {len(data)} fields, over the limit of {most}")
        return data


class FrozenModel(StrictModel):
    """Immutable; unknown fields are refused; infinity and NaN are texts in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", defer_build=True)
