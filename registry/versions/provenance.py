"""`Provenance`: what the pusher declares a version was made from: data sets, training run, code, parameters.

It is declared, not proven. It is part of the manifest, so the digest covers it and nothing can take it back: every text
is bounded and on one line, and a URI with a password or a signature is refused. Parameters are text, as in MLflow.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import model_validator

from registry.digest import Digest, canonical_json
from registry.errors import Invalid, TooLarge
from registry.findings import Finding
from registry.model import FrozenModel
from registry.strict import json as strict_json
from registry.strict.json import Dialect
from registry.validation import first_problem

DATASETS_LIMIT = 64
PARAMETERS_LIMIT = 200
URI_LIMIT = 1000
TEXT_LIMIT = 200
VALUE_LIMIT = 500
SIZE_LIMIT_BYTES = 64 * 2**10
FIELD: Final = "provenance"
PROVENANCE_FILE_LIMIT_BYTES = 256 * 2**10

_DIALECT = Dialect("PROVENANCE_INVALID", FIELD, depth=6)

_URI = re.compile(r"[a-z][a-z0-9+.-]{1,31}:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+\Z")
_LINE = re.compile(r"[^\x00-\x1f\x7f\u2028\u2029]+\Z")
_MARK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/%+=@\[\]-]{0,199}\Z")
_TOOL = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}\Z")
_COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_PARAMETER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:-]{0,99}\Z")
_SECRET = re.compile(r"(?:hf_[A-Za-z0-9]{30}|lra_[A-Za-z0-9]{38}|gh[opsu]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16})")
_RUNNABLE = frozenset({"javascript", "data", "vbscript", "blob"})
_SIGNED = re.compile(
    r"(?:signature|sig|token|access_token|api_?key|password|secret|awsaccesskeyid"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token))\Z"
)
"""Names in a query that make a link work for every reader."""


class Dataset(FrozenModel):
    """Data that a version was trained on. `digest` says which bytes; without it, a URI and its revision."""

    name: str = ""
    """What people call it, at most 200 characters."""
    uri: str = ""
    """Where it is, such as `hf://datasets/acme/tickets`. No user, password or signature. Empty if `digest` is set."""
    digest: Digest | None = None
    """SHA-256 of its bytes; null if it is named by `uri` and `revision` only."""
    revision: str = ""
    """Revision at `uri`, such as a commit."""
    split: str = ""
    """Part of the data set, such as `train`."""

    @property
    def key(self) -> str:
        """What tells one data set from another: the digest, else the URI at its revision and split."""
        revision = f"@{self.revision}" if self.revision else ""
        return self.digest or self.uri + revision + (f"#{self.split}" if self.split else "")


class Run(FrozenModel):
    """The training run, by the tool that recorded it: `mlflow`, `wandb`, or any other word."""

    tool: str
    """Program that recorded the run, in lower case: `mlflow`, `wandb` …"""
    id: str
    """The run's identifier in that program, at most 200 characters."""
    url: str = ""
    """Web page of the run (http or https)."""


class Code(FrozenModel):
    """The code that trained it: a repository and the commit in it, whole."""

    repository: str
    """URI of the repository, without credentials."""
    commit: str
    """Whole commit: 40 or 64 lower-case hexadecimal digits."""


class Provenance(FrozenModel):
    """What the pusher declares a version was made from. Declared, not proven."""

    datasets: tuple[Dataset, ...] = ()
    """Data that it was trained on, at most 64."""
    run: Run | None = None
    """The training run that made it; null if none is declared."""
    code: Code | None = None
    """The code that trained it; null if none is declared."""
    parameters: dict[str, str] = {}
    """Name → value of hyperparameters, as text. At most 200, each value at most 500 characters on one line."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        findings = list(_findings_against(self))
        if findings:
            raise wrong(findings[0].location, findings[0].message, findings)
        size = len(canonical_json(self.model_dump(mode="json")))
        if size > SIZE_LIMIT_BYTES:
            raise TooLarge("SIZE_INVALID", f"{FIELD}: {size} bytes are over the limit of {SIZE_LIMIT_BYTES}")
        return self

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Provenance | None:
        """From plain values; None when they declare nothing. `Invalid` (PROVENANCE_INVALID) names the field."""
        present = {key: value for key, value in values.items() if value or key not in cls.model_fields}
        if not present:
            return None
        if isinstance(parameters := present.get("parameters"), Mapping):
            present["parameters"] = {str(key): _text(str(key), value) for key, value in parameters.items()}
        try:
            return cls.model_validate(present)
        except ValueError as e:
            field, message = first_problem(e, "")
            raise wrong(f"{FIELD}.{field}".rstrip("."), message) from e


def wrong(location: str, message: str, findings: list[Finding] | None = None) -> Invalid:
    """The error for a declared input that breaks a rule."""
    collected = findings or [Finding("provenance.invalid", location, message)]
    return Invalid("PROVENANCE_INVALID", f"{location} {message}", findings=collected)


def _findings_against(provenance: Provenance) -> Iterator[Finding]:
    if not (provenance.datasets or provenance.run or provenance.code or provenance.parameters):
        yield Finding("provenance.invalid", FIELD, "declares nothing: leave it out")
    if len(provenance.datasets) > DATASETS_LIMIT:
        yield Finding("provenance.too_many", f"{FIELD}.datasets", f"has {len(provenance.datasets)}; the limit is 64")
    if len(provenance.parameters) > PARAMETERS_LIMIT:
        yield Finding("provenance.too_many", f"{FIELD}.parameters", f"has {len(provenance.parameters)} (limit 200)")
    names: set[str] = set()
    for number, dataset in enumerate(provenance.datasets[:DATASETS_LIMIT]):
        yield from _against_dataset(f"{FIELD}.datasets.{number}", dataset)
        if dataset.key in names:
            yield Finding("provenance.duplicate", f"{FIELD}.datasets.{number}", "is the same data set as one before it")
        names.add(dataset.key)
    if provenance.run is not None:
        location = f"{FIELD}.run"
        yield from _must(_TOOL, f"{location}.tool", provenance.run.tool, "1 to 32 of a-z, 0-9, '.', '_' and '-'")
        yield from _must(_MARK, f"{location}.id", provenance.run.id, f"at most {TEXT_LIMIT} characters of a run's id")
        if provenance.run.url:
            yield from _against_uri(f"{location}.url", provenance.run.url, frozenset({"http", "https"}))
    if provenance.code is not None:
        yield from _against_uri(f"{FIELD}.code.repository", provenance.code.repository)
        rule = "a whole commit: 40 or 64 lower-case hex digits"
        yield from _must(_COMMIT, f"{FIELD}.code.commit", provenance.code.commit, rule)
    for name, value in list(provenance.parameters.items())[:PARAMETERS_LIMIT]:
        location = f"{FIELD}.parameters.{name[:60]}"
        yield from _must(_PARAMETER, location, name, "a name of 1 to 100 letters, digits and '_', '.', '/', ':', '-'")
        yield from _against_text(location, value, VALUE_LIMIT)


def _against_dataset(location: str, dataset: Dataset) -> Iterator[Finding]:
    if not dataset.uri and dataset.digest is None:
        yield Finding("provenance.dataset_unnamed", location, "has neither a URI nor a digest")
    if dataset.name:
        yield from _against_text(f"{location}.name", dataset.name, TEXT_LIMIT)
    if dataset.uri:
        yield from _against_uri(f"{location}.uri", dataset.uri)
    for field, value in (("revision", dataset.revision), ("split", dataset.split)):
        if value:
            yield from _must(_MARK, f"{location}.{field}", value, f"at most {TEXT_LIMIT} of A-Za-z0-9._:/%+=@[]-")


def _against_text(location: str, text: str, limit: int) -> Iterator[Finding]:
    if len(text) > limit:
        yield Finding("provenance.too_long", location, f"has {len(text)} characters; the limit is {limit}")
    elif text and not _LINE.match(text):
        yield Finding("provenance.text_invalid", location, "holds a control character or a line break")
    elif _SECRET.search(text):
        yield Finding("provenance.secret", location, "holds what looks like a token: a manifest cannot be changed")


def _must(pattern: re.Pattern[str], location: str, text: str, rule: str) -> Iterator[Finding]:
    if not pattern.match(text):
        yield Finding("provenance.text_invalid", location, f"must be {rule}, not {text[:60]!r}")
    elif _SECRET.search(text):
        yield Finding("provenance.secret", location, "holds what looks like a token: a manifest cannot be changed")


def _against_uri(location: str, text: str, schemes: frozenset[str] = frozenset()) -> Iterator[Finding]:
    if len(text) > URI_LIMIT:
        yield Finding("provenance.too_long", location, f"has {len(text)} characters; the limit is {URI_LIMIT}")
        return
    scheme = text.partition(":")[0]
    if not _URI.match(text) or scheme in _RUNNABLE or (schemes and scheme not in schemes):
        allowed = " or ".join(sorted(schemes)) or "scheme:…, in the characters of RFC 3986"
        yield Finding("provenance.uri_invalid", location, f"must be a URI ({allowed}), not {text[:80]!r}")
        return
    try:
        parts = urlsplit(text)
    except ValueError:
        yield Finding("provenance.uri_invalid", location, f"is no URI that can be read: {text[:80]!r}")
        return
    user = parts.netloc.rpartition("@")[0]
    parameter_names = [name.lower() for query in (parts.query, parts.fragment) for name, _ in parse_qsl(query)]
    signed = any(_SIGNED.match(name) for name in parameter_names) or _SECRET.search(text)
    if ":" in user or (user and scheme not in ("ssh", "git+ssh", "sftp")) or signed:
        message = "holds a user, a password or a signature: everyone who may pull can read it, permanently"
        yield Finding("provenance.secret", location, message)


def _text(name: str, value: Any) -> str:
    """A scalar as text: numbers as JSON writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise wrong(f"{FIELD}.parameters.{name[:60]}", "must be text, a finite number, true or false, not nested")


def provenance_from_options(
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
        values_of_file = values.get("datasets") or []
        if not isinstance(values_of_file, list):
            raise wrong(f"{FIELD}.datasets", "must be a list")
        values["datasets"] = [*values_of_file, *(parse_dataset(text) for text in datasets)]
    if run:
        values["run"] = parse_run(run)
    if commit:
        values["code"] = parse_code(commit)
    if parameters:
        values_of_file = values.get("parameters") or {}
        if not isinstance(values_of_file, dict):
            raise wrong(f"{FIELD}.parameters", "must map names to values")
        values["parameters"] = {**values_of_file, **dict(parse_parameter(text) for text in parameters)}
    return Provenance.read(values)


def parse_provenance_file(data: bytes, *, file: str) -> dict[str, Any]:
    """The plain values of a file: TOML by its ending, else JSON. `Invalid` (PROVENANCE_INVALID)."""
    if len(data) > PROVENANCE_FILE_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"{file}: {len(data)} bytes are over the limit of {PROVENANCE_FILE_LIMIT_BYTES}")
    if not file.endswith(".toml"):
        return strict_json.parse_object(data, _DIALECT, file=file)
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as e:
        raise wrong(file, f"is not TOML: {str(e)[:200]}") from e


def parse_dataset(text: str) -> dict[str, Any]:
    """`NAME=URI`, `NAME=URI@sha256:…` or `NAME=sha256:…`."""
    name, equals, rest = text.partition("=")
    if not equals or not name or "://" in name:
        raise wrong("dataset", f"{text[:120]!r} is not NAME=URI, such as tickets=s3://data/tickets.jsonl@sha256:…")
    uri, at, hexadecimal = rest.rpartition("@sha256:")
    if rest.startswith("sha256:"):
        uri, at, hexadecimal = "", "@", rest.removeprefix("sha256:")
    return {"name": name, "uri": uri, "digest": f"sha256:{hexadecimal}"} if at else {"name": name, "uri": rest}


def parse_run(text: str) -> dict[str, Any]:
    """`TOOL:ID` or `TOOL:ID=URL`."""
    tool, colon, rest = text.partition(":")
    if not colon or not rest:
        raise wrong("run", f"{text[:120]!r} is not TOOL:ID or TOOL:ID=URL, such as mlflow:4f1c…")
    run_id, _, url = rest.partition("=")
    return {"tool": tool, "id": run_id, "url": url}


def parse_code(text: str) -> dict[str, Any]:
    """`URL@COMMIT`."""
    repository, at, commit = text.rpartition("@")
    if not at or "://" not in repository:
        raise wrong("commit", f"{text[:120]!r} is not URL@COMMIT, such as https://git.example.org/team/train@9c4f…")
    return {"repository": repository, "commit": commit}


def parse_parameter(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise wrong("param", f"{text[:120]!r} is not NAME=VALUE, such as learning_rate=2e-4")
    return name, value
