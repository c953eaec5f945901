"""docs/reference/limits.md: limits of what a registry accepts and keeps, read from the modules that enforce them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from registry.files import KINDS
from registry.server.settings import Settings
from registry.server.webhooks import dispatch
from scripts.reference.tables import table

INTRODUCTION = """\
# Limits

What a registry accepts and keeps. Limits that operators change are [settings](settings.md); namespaces have quotas.
"""
LIMITS = {
    "Versions": {
        "registry.manifest": {
            "FILES_LIMIT": "files of a version",
            "VERSION_LIMIT_BYTES": "size of a version",
            "MANIFEST_LIMIT_BYTES": "size of a manifest",
            "TAG_VALUE_LIMIT": "characters of a tag that can be searched",
        },
        "registry.names": {
            "NAME_LIMIT": "characters of a namespace, adapter or alias",
            "BASE_NAME_LIMIT": "characters of a base's name",
            "PATH_LIMIT_BYTES": "length of a file's path",
            "PATH_DEPTH_LIMIT": "folders and file in a path",
        },
        "registry.provenance": {
            "DATASETS_LIMIT": "declared data sets",
            "PARAMETERS_LIMIT": "declared parameters",
            "SIZE_LIMIT_BYTES": "size of the declared inputs",
        },
        "registry.adapters.safetensors": {
            "HEADER_LIMIT_BYTES": "header of a safetensors file",
            "TENSORS_LIMIT": "tensors of a safetensors file",
        },
        "registry.adapters.peft.config": {"RANK_LIMIT": "rank"},
        "registry.evaluation.golden": {
            "SAMPLES_LIMIT": "golden samples, in a file of the size above",
            "SAMPLE_LIMIT_BYTES": "size of a golden sample",
        },
    },
    "Requests": {
        "registry.server.http.request_body": {"BODY_LIMIT_BYTES": "body of a request, files and records aside"},
        "registry.api": {"PAGE_LIMIT": "items of a page", "DEPTH_LIMIT": "nesting of a body"},
        "registry.server.routes.audit": {"WAIT_LIMIT_SECONDS": "long poll of `/events`"},
    },
    "Jobs and nodes": {
        "registry.merging.recipes": {"SOURCES_LIMIT": "sources of a merge", "RANK_LIMIT": "rank of a merge"},
        "registry.jobs": {
            "ATTEMPTS_LIMIT": "attempts of a job",
            "PAYLOAD_LIMIT_BYTES": "payload of a job",
            "RESULT_LIMIT_BYTES": "result of a job",
        },
        "registry.server.jobs.requests": {"WAITING_LIMIT": "waiting merges and conversions of a namespace"},
        "registry.server.jobs.campaigns": {"JOBS_LIMIT": "jobs of a campaign"},
        "registry.api.serving": {"SLOTS_LIMIT": "versions of an engine on a node", "LEASE_SECONDS": "lease of a node"},
        "registry.server.serving.reports": {"NODES_LIMIT": "engines of one reporter"},
    },
    "Storage and events": {
        "registry.server.storage.s3.store": {
            "COPY_LIMIT_BYTES": "one copy within a bucket; larger ones go in parts",
            "UPLOAD_LIMIT_BYTES": "one direct upload to a bucket",
        },
        "registry.client.local.cache": {"LIMIT_BYTES": "cache of a client, by default"},
        "registry.server.webhooks": {"WEBHOOKS_LIMIT": "webhooks of a namespace"},
        "registry.server.webhooks.dispatch": {"ANSWER_SECONDS": "wait for a webhook's answer"},
    },
}
"""Section → module → constant → what it limits."""


def attempts() -> int:
    """How often the delivery of an event is tried."""
    return len(dispatch.RETRY_SECONDS) + 1


def markdown() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## Files\n", "Files of other kinds are refused.\n"]
    kinds = ((f"`{kind.pattern}`", _size(kind.limit_bytes), f"`{kind.media_type}`") for kind in KINDS)
    parts.append(table(["file", "at most", "media type"], kinds))
    for title, modules in LIMITS.items():
        parts += [f"## {title}\n", table(["limit", "value", "set in"], _rows(modules))]
    waits = ", ".join(_seconds(seconds) for seconds in dispatch.RETRY_SECONDS)
    parts.append(f"A webhook delivery has {attempts()} attempts; the pauses between them are {waits}.\n")
    parts.append(
        f"Garbage collection keeps unreferenced blobs for {_seconds(Settings().gc_grace_seconds)} by default.\n"
    )
    return "\n".join(parts)


def _rows(modules: dict[str, dict[str, str]]) -> Iterable[tuple[str, str, str]]:
    for name, constants in modules.items():
        for constant, meaning in constants.items():
            yield meaning, _value(constant, getattr(import_module(name), constant)), f"`{name}.{constant}`"


def _value(constant: str, value: float) -> str:
    if constant.endswith("_BYTES"):
        return _size(int(value))
    return _seconds(value) if constant.endswith("_SECONDS") else f"{value:,}"


def _size(size_bytes: int) -> str:
    """In the largest unit that divides it."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes % 2**power == 0:
            return f"{size_bytes >> power} {unit}"
    return f"{size_bytes} bytes"


def _seconds(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % length == 0:
            return f"{seconds // length:g} {unit}"
    return f"{seconds:g} s"
