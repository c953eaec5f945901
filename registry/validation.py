"""What is wrong with a document, in the registry's words: where, which rule, which value.

pydantic describes each error as data: `loc`, `type` and `ctx`. Its own sentences are not read.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from registry.errors import printable

_PATTERN_RULES: dict[str, str] = {}
"""A regular expression → the rule in words."""
UNKNOWN_FIELD = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
"""The types of errors about a field that a schema, or a dataclass in it, does not have."""
_RULES: dict[str, str] = {
    **dict.fromkeys(UNKNOWN_FIELD, "is not a field here"),
    "missing": "is missing",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "datetime_from_date_parsing": "must be a date and time",
    "datetime_parsing": "must be a date and time",
    "datetime_type": "must be a date and time",
    "timezone_aware": "needs a time zone",
    "bytes_invalid_encoding": "must be base64",
    "enum": "must be {expected}",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "json_invalid": "is not JSON: {error}",
}
"""The type of an error → the rule that the value breaks."""
_LENGTHS = {
    "string_too_short": ("least", "min_length", "character"),
    "string_too_long": ("most", "max_length", "character"),
    "bytes_too_long": ("most", "max_length", "byte"),
    "too_short": ("least", "min_length", "item"),
    "too_long": ("most", "max_length", "item"),
}
"""The type of an error about a length → most or least, the name of the limit, and what is counted."""


def pattern(expression: str, words: str) -> str:
    """The regular expression of a field. An error states the rule in these words."""
    _PATTERN_RULES[expression] = words
    return expression


def location_of(error: Mapping[str, Any]) -> str:
    """The dotted path of the field that an error is about; empty for the document itself."""
    parts = error["loc"]
    if parts[-1:] == ("[key]",):  # the key itself is wrong: name the object, and leave the key out of the message
        parts = parts[:-2]
    return ".".join(str(part) for part in parts)


def rule_of(error: Mapping[str, Any]) -> str:
    """The rule that the value of an error breaks."""
    context = error.get("ctx", {})
    if error["type"] == "value_error":  # of a validator of ours
        return str(context["error"])
    if error["type"] == "string_pattern_mismatch":
        expression = context["pattern"]
        return _PATTERN_RULES.get(expression, f"must match the pattern {expression}")
    if error["type"] in _LENGTHS:
        bound, limit, noun = _LENGTHS[error["type"]]
        return f"must have at {bound} {context[limit]} {noun}{'s' * (context[limit] != 1)}"
    rule = _RULES.get(error["type"])
    text = rule.format_map(context) if rule is not None else str(error["msg"])
    is_of_query = error["type"].endswith("_parsing") and isinstance(error.get("input"), str)
    return f"{text}, not '{printable(error['input'], 60)}'" if is_of_query else text


def errors_of(error: ValidationError) -> Iterable[Mapping[str, Any]]:
    """The errors as data, without the values that they are about."""
    return error.errors(include_url=False, include_input=False)


def first_problem(error: ValueError, default: str = "") -> tuple[str, str]:
    """Where a document is wrong first (`default` for the document itself), and why."""
    if not isinstance(error, ValidationError):
        return default, str(error)
    first = next(iter(errors_of(error)))
    return location_of(first) or default, rule_of(first)
