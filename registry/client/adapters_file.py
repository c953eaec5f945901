"""`AdaptersFile`: a TOML file that lists adapters with their folders, tags and aliases, for `adapter apply`.

    namespace = "acme"
    base = "smollm2"

    [adapters.support]
    folder = "out/support"          # relative to the file
    tags = {team = "nlp"}
    aliases = ["canary"]            # point at the version of the folder

    [adapters.billing]
    aliases = {prod = "3", canary = "main"}

Keys of `adapters` are names; one with a slash names its namespace.
"""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, field_validator

from registry import names
from registry.api import GROUP_LIMIT
from registry.api.catalog import MetadataChange
from registry.errors import Invalid
from registry.model import FrozenModel
from registry.names import AdapterName
from registry.validation import first_problem

FILE_LIMIT_BYTES = 2**20
Shape = TypeVar("Shape", bound=BaseModel)


class AdapterEntry(MetadataChange):
    """One adapter. `description`, `tags` and `links` are of the adapter; what is absent stays as it is."""

    folder: str = ""
    base: str = ""
    message: str = ""
    aliases: dict[str, str | int] | list[str] = {}

    @field_validator("aliases", mode="before")
    @classmethod
    def _require_versions(cls, value: Any) -> Any:
        if isinstance(value, dict) and any(isinstance(version, bool) for version in value.values()):
            raise ValueError("a version is a whole number or text, not true or false")
        return value

    @property
    def versions(self) -> dict[str, str]:
        """Alias → version. Of a list all have none, which stands for that of the folder, without one for `main`."""
        if isinstance(self.aliases, list):
            return dict.fromkeys(self.aliases, "")
        return {alias: str(version) for alias, version in self.aliases.items()}

    @property
    def change(self) -> dict[str, Any]:
        """The fields of a change of the adapter's metadata; empty if nothing is stated."""
        return {field: value for field in ("description", "tags", "links") if (value := getattr(self, field))}


class AdaptersFile(FrozenModel):
    """The file. `namespace` and `base` are defaults."""

    namespace: str = ""
    base: str = ""
    adapters: dict[str, dict[str, Any]] = Field(min_length=1, max_length=GROUP_LIMIT)


def read_adapters_file(path: Path) -> dict[AdapterName, AdapterEntry]:
    """The adapters of a file by name, with absolute folders. `Invalid` (REQUEST_INVALID) names all wrong fields."""
    with path.open("rb") as opened:
        data = opened.read(FILE_LIMIT_BYTES + 1)
    if len(data) > FILE_LIMIT_BYTES:
        raise Invalid("REQUEST_INVALID", f"{path.name} is over the limit of {FILE_LIMIT_BYTES} bytes")
    file = _read(AdaptersFile, _parse(data, path.name), path.name, "")
    entries: dict[AdapterName, AdapterEntry] = {}
    errors: list[Invalid] = []
    for key, stated in file.adapters.items():
        try:
            name, entry = _read_entry(path, file, key, stated)
            if name in entries:
                raise Invalid("REQUEST_INVALID", f"{path.name}: adapters: '{name}' is there twice")
            entries[name] = entry
        except Invalid as e:
            errors.append(e)
    if errors:
        wrong = "; ".join(error.detail.removeprefix(f"{path.name}: ") for error in errors)
        raise Invalid(errors[0].code, f"{path.name}: {wrong}")
    return entries


def _read_entry(path: Path, file: AdaptersFile, key: str, stated: dict[str, Any]) -> tuple[AdapterName, AdapterEntry]:
    """One adapter of the file. `Invalid` says where."""
    entry = _read(AdapterEntry, stated, path.name, f"adapters.{key}")
    location = f"{path.name}: adapters.{key}"
    if "/" not in key and not file.namespace:
        rule = f'has no namespace: set `namespace` at the top, or write "NAMESPACE/{key}"'
        raise Invalid("REQUEST_INVALID", f"{location} {rule}")
    try:
        name = AdapterName.parse(key if "/" in key else f"{file.namespace}/{key}")
    except Invalid as e:
        raise Invalid(e.code, f"{location}: {e.detail}") from e
    for alias, version in entry.versions.items():
        _check_alias(alias, version, f"{location}.aliases.{alias}")
    folder = str(path.parent / entry.folder) if entry.folder else ""
    return name, entry.model_copy(update={"folder": folder, "base": entry.base or file.base})


def _parse(data: bytes, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as e:
        problem = f"is not UTF-8 text (byte {e.start})"
    except tomllib.TOMLDecodeError as e:
        problem = f"is not TOML: {e}"
    except RecursionError:
        problem = "nests lists too deeply"
    except ValueError:  # of `int`
        problem = "holds an integer of too many digits"
    raise Invalid("REQUEST_INVALID", f"{file} {problem}")


def _check_alias(alias: str, version: str, location: str) -> None:
    if version.removeprefix("-").isdecimal() and int(version[:12]) < 1:
        raise Invalid("REQUEST_INVALID", f"{location}: '{version}' is not a version; versions start at 1")
    try:
        names.alias(alias)
        if version:
            names.selector(version)
    except Invalid as e:
        raise Invalid(e.code, f"{location}: {e.detail}") from e


def _read(shape: type[Shape], values: Any, file: str, location: str) -> Shape:
    """One adapter at a time, so that errors of our own rules name it, too."""
    try:
        return shape.model_validate(values)
    except ValueError as e:
        field, message = first_problem(e, "")
        where = ".".join(filter(None, (location, field))) or "the file"
        raise Invalid("REQUEST_INVALID", f"{file}: {where}: {message}") from e
    except Invalid as e:
        raise Invalid("REQUEST_INVALID", f"{file}: {location}.{e.detail}") from e
