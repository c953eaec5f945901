"""`FrozenStruct`: the base of the data types that move with an adapter, such as manifests and the shapes of a transfer.

msgspec validates and encodes them in C and takes a tenth of pydantic's time to import, which every push and pull would
pay. They have the methods of pydantic's models that the code uses, and may be fields of such models (ADR 33).
"""

import functools
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Protocol, Self, get_origin, get_type_hints

import msgspec

from registry.digest import Digest
from registry.errors import Invalid

_LOCATION = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$", re.DOTALL)
_FIELD = re.compile(r"^Object (?:contains unknown|missing required) field `([^`]*)`")
_INDEX = re.compile(r"\[(\d+)\]")
_PATTERNS: dict[str, str] = {}
"""A regular expression, as an error quotes it → the rule in words."""
_TYPES = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "object": "an object",
    "array": "a list", "null": "null",
}  # fmt: skip
_UNITS = {"str": "characters", "bytes": "bytes"}
Moment = Annotated[datetime, msgspec.Meta(extra_json_schema={"format": "date-time"})]
SCHEMA_MARK = "x-struct"
"""Key of the JSON Schema by which pydantic refers to a struct; the OpenAPI document resolves it."""


def _read_text(target: type, value: Any) -> Any:
    if target is not Digest:
        raise NotImplementedError(target)
    try:
        return Digest(value)
    except Invalid as e:  # msgspec adds where to a ValueError
        raise ValueError(e.detail) from e


def _write_text(value: Any) -> str:
    if isinstance(value, str):  # a digest
        return str(value)
    raise NotImplementedError(type(value))


_ENCODER = msgspec.json.Encoder(enc_hook=_write_text)
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}
_BUILDING = threading.Lock()
"""msgspec shows other threads the description of a struct while it still builds it, and a second one that reads by it
ends the process. So one thread at a time builds, and the others read by a decoder only once it is there."""


class Document(Protocol):
    """A data type that is read and written as JSON: a struct, or a model of pydantic."""

    @classmethod
    def model_validate_json(cls, data: bytes | str, /) -> Self:
        """From JSON. `ValueError` names the field (`first_problem`)."""

    def model_dump(self, *, mode: str = ...) -> dict[str, Any]:
        """As plain values."""

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """A copy with other values of some fields."""


class _Printed(msgspec.Struct, frozen=True):
    hidden_fields: ClassVar[frozenset[str]] = frozenset()
    """What `repr` leaves out: secrets, since logs and tracebacks print values."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name not in self.hidden_fields]


class Value(_Printed, frozen=True):
    """The base of immutable values that the code builds. Python takes ten times as long to define a dataclass.

    Commands import these; what only servers and workers import may be a dataclass.
    """

    def replace(self, **changes: Any) -> Self:
        """A copy with other values of some fields."""
        return msgspec.structs.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As plain values of JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


class FrozenStruct(_Printed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable; unknown fields are refused. What is read is validated, what is constructed is not."""

    is_hashed: ClassVar[bool] = False
    """Whether a digest covers every field, so that a reader must know all of them, in a response, too (ADR 43)."""

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        """From plain values. `ValueError` names the field (`first_problem`)."""
        if isinstance(value, cls):
            return value
        cls._decoder()  # describes the struct
        return msgspec.convert(value, cls, dec_hook=_read_text)

    @classmethod
    def model_validate_json(cls, data: bytes | str) -> Self:
        """From JSON. `ValueError` names the field (`first_problem`)."""
        read: Self = cls._decoder().decode(data)
        return read

    @classmethod
    def _decoder(cls) -> msgspec.json.Decoder[Any]:
        decoder = _DECODERS.get(cls)
        if decoder is None:
            with _BUILDING:
                decoder = _DECODERS.setdefault(cls, msgspec.json.Decoder(cls, dec_hook=_read_text))
        return decoder

    def model_dump(self, *, mode: str = "json") -> dict[str, Any]:  # noqa: ARG002 - as pydantic's
        """As plain values of JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self, enc_hook=_write_text)
        return values

    def to_json(self) -> bytes:
        """As JSON."""
        return _ENCODER.encode(self)

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """A copy with other values of some fields."""
        return msgspec.structs.replace(self, **update)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> dict[str, Any]:
        """Let pydantic's models have fields of this type. A dictionary is a core schema, so nothing is imported."""
        return {
            "type": "function-plain",
            "function": {"type": "no-info", "function": cls._validate_field},
            "metadata": {"pydantic_js_functions": [lambda _schema, _handler: {SCHEMA_MARK: cls.__name__}]},
            "serialization": {"type": "function-plain", "function": msgspec_builtins},
        }

    @classmethod
    def _validate_field(cls, value: Any) -> Self:
        """As `model_validate`, with an error that pydantic puts into its own."""
        try:
            return cls.model_validate(value)
        except msgspec.ValidationError as e:
            location, message = first_problem(e, "")
            raise ValueError(f"{location}: {message}" if location else message) from e


@functools.cache
def field_types(kind: Any) -> dict[str, Any]:
    """The types of the fields of a struct, a model or a dataclass, by their names in JSON; empty for other types."""
    plain = get_origin(kind) or kind
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    if fields := getattr(kind, "model_fields", None):
        return {name: field.annotation for name, field in fields.items()}
    return get_type_hints(plain) if is_dataclass(plain) else {}


def msgspec_builtins(value: Any) -> Any:
    """A struct as plain values of JSON."""
    return msgspec.to_builtins(value, enc_hook=_write_text)


def schema_components(structs: Sequence[type]) -> dict[str, dict[str, Any]]:
    """The JSON Schemas of these structs and of all that they hold, as components of an OpenAPI document."""

    def schema_of(target: type) -> dict[str, Any]:
        if target is Digest:
            return {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
        raise NotImplementedError(target)

    template = "#/components/schemas/{name}"
    components = msgspec.json.schema_components(structs, schema_hook=schema_of, ref_template=template)[1]
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(components))  # defaults are tuples, and objects are shared
    return plain


def pattern(expression: str, words: str) -> str:
    """The regular expression of a field. An error states the rule in these words."""
    _PATTERNS[repr(expression)] = _PATTERNS[f"'{expression}'"] = words
    return expression


def _types(names: str) -> str:
    return " or ".join(_TYPES.get(name, name) for name in names.split(" | "))


_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(expression, re.DOTALL), rule)
    for expression, rule in (
        (r"Value error, (.*)", lambda m: state_rule(m[1])),
        (r"(?:Expected `str` matching regex|String should match pattern) (.*)",
         lambda m: _PATTERNS.get(m[1], f"must match the pattern {m[1]}")),
        (r"Expected `(\w+)` of length (<=|>=) (\d+)",
         lambda m: f"must have at {'most' if m[2] == '<=' else 'least'} {m[3]} {_UNITS.get(m[1], 'entries')}"),
        (r"Expected `(?:int|float)` (<=|>=) (.*)",
         lambda m: f"must be at {'most' if m[1] == '<=' else 'least'} {m[2]}"),
        (r"Expected `(.+)`, got `(.+)`", lambda m: f"must be {_types(m[1])}, not {_types(m[2])}"),
        (r"(?:Object contains unknown field .*|Extra inputs are not permitted)", lambda _: "is not a field here"),
        (r"(?:Object missing required field .*|Field required)", lambda _: "is missing"),
        (r"[A-Z]\w+ should (.*?)( after validation.*)?", lambda m: f"must {m[1]}"),
    )
)  # fmt: skip
"""What a message of pydantic or msgspec looks like, and how this registry states the rule."""


def state_rule(message: str) -> str:
    """The rule that a value breaks, without the wording of the library that checked it."""
    for expression, rule in _RULES:
        if match := expression.fullmatch(message):
            return rule(match)
    return message


def first_problem(error: Exception, default: str) -> tuple[str, str]:
    """Where a document is wrong first (`default` for the document itself), and why. Of pydantic's errors, too."""
    if callable(errors := getattr(error, "errors", None)):
        first = errors()[0]
        return ".".join(str(part) for part in first["loc"]) or default, state_rule(str(first["msg"]))
    text = str(error)
    match, field = _LOCATION.search(text), _FIELD.search(text)
    location = _INDEX.sub(r".\1", match[1].replace("[...]", ".*")).lstrip(".") if match else ""
    parts = [location, field[1] if field else ""]
    return ".".join(filter(None, parts)) or default, state_rule(text[: match.start()] if match else text)
