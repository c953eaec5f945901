"""What somebody declares as they write it, in a file or in the short forms of the command line, as `Provenance`.

    of_file        JSON, or TOML by its name: datasets, run, code, parameters
    of_options     the same, and what stands on the command line

Invariants
- What stands on the command line comes on top of the file: data sets are added, the rest replaces what the file says.
- It is checked by the rules of the manifest, before anything is sent.

Example
    >>> of_options(datasets=("tickets=s3://data/tickets.jsonl",)).datasets[0].key
    's3://data/tickets.jsonl'
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from registry.errors import TooLarge
from registry.provenance import FIELD, Provenance, wrong
from registry.strict import json as strict_json
from registry.strict.json import Dialect

FILE_LIMIT_BYTES = 256 * 2**10
_DIALECT = Dialect("PROVENANCE_INVALID", FIELD, depth=6)


def of_file(data: bytes, *, file: str) -> Provenance | None:
    """What a file declares. `Invalid` (PROVENANCE_INVALID) names the field and the rule."""
    return Provenance.read(parse(data, file=file))


def of_options(
    options: dict[str, Any] | None = None,
    *,
    datasets: Sequence[str] = (),
    run: str = "",
    commit: str = "",
    parameters: Sequence[str] = (),
) -> Provenance | None:
    """What options declare on top of the values of a file; None for nothing."""
    values = options or {}
    if datasets:
        written = values.get("datasets") or []
        if not isinstance(written, list):
            raise wrong(f"{FIELD}.datasets", "must be a list")
        values["datasets"] = [*written, *(dataset(text) for text in datasets)]
    if run:
        values["run"] = run_of(run)
    if commit:
        values["code"] = code(commit)
    if parameters:
        written = values.get("parameters") or {}
        if not isinstance(written, dict):
            raise wrong(f"{FIELD}.parameters", "must map names to values")
        values["parameters"] = {**written, **dict(parameter(text) for text in parameters)}
    return Provenance.read(values)


def parse(data: bytes, *, file: str) -> dict[str, Any]:
    """The plain values of a file, TOML by its name, else JSON. `Invalid` (PROVENANCE_INVALID)."""
    if len(data) > FILE_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"{file}: {len(data)} bytes are over the limit of {FILE_LIMIT_BYTES}")
    if not file.endswith(".toml"):
        document = strict_json.parse(data, _DIALECT, file=file)
    else:
        try:
            document = tomllib.loads(data.decode())
        except (ValueError, RecursionError) as e:
            raise wrong(file, f"is not TOML: {str(e)[:200]}") from e
    if not isinstance(document, dict):
        raise wrong(file, "is not one object with datasets, run, code and parameters")
    return document


# ------------------------------------------------------------------ the short forms of the command line
def dataset(text: str) -> dict[str, Any]:
    """`NAME=URI`, `NAME=URI@sha256:…` or `NAME=sha256:…`."""
    name, equals, rest = text.partition("=")
    if not equals or not name or "://" in name:
        raise wrong("dataset", f"{text[:120]!r} is not NAME=URI, such as tickets=s3://data/tickets.jsonl@sha256:…")
    uri, at, hexadecimal = rest.rpartition("@sha256:")
    if rest.startswith("sha256:"):
        uri, at, hexadecimal = "", "@", rest.removeprefix("sha256:")
    return {"name": name, "uri": uri, "digest": f"sha256:{hexadecimal}"} if at else {"name": name, "uri": rest}


def run_of(text: str) -> dict[str, Any]:
    """`TOOL:ID` or `TOOL:ID=URL`."""
    tool, colon, rest = text.partition(":")
    if not colon or not rest:
        raise wrong("run", f"{text[:120]!r} is not TOOL:ID or TOOL:ID=URL, such as mlflow:4f1c…")
    mark, _, url = rest.partition("=")
    return {"tool": tool, "id": mark, "url": url}


def code(text: str) -> dict[str, Any]:
    """`URL@COMMIT`."""
    repository, at, commit = text.rpartition("@")
    if not at or "://" not in repository:
        raise wrong("commit", f"{text[:120]!r} is not URL@COMMIT, such as https://git.example.org/team/train@9c4f…")
    return {"repository": repository, "commit": commit}


def parameter(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise wrong("param", f"{text[:120]!r} is not NAME=VALUE, such as learning_rate=2e-4")
    return name, value
