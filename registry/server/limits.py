"""`LIMITS`: the limits that users and operators meet, in one table: what is limited, how far, and why.

`adapter config show`, the page *Status* and docs/reference/limits.md show it. Each number is that of the
module that enforces it. What an operator may change is a setting, and has no row here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from registry import api, jobs, names
from registry.adapters import safetensors
from registry.adapters.peft import config
from registry.api import access, catalog, serving, transfer
from registry.api.operations import operation
from registry.hub import operations as hub
from registry.server import audit, webhooks
from registry.server.access import namespaces, quotas, rate_limits, token_exchange
from registry.server.http import admission, middleware, request_body
from registry.server.http.server import IDLE_SECONDS, UNREAD_SECONDS
from registry.server.maintenance import gc
from registry.server.promotion import approvals, gates, moves
from registry.server.promotion.attestations import signatures
from registry.server.serving import desired, reports
from registry.server.storage import signed_links
from registry.versions import manifest


@dataclass(frozen=True, slots=True)
class Limit:
    """One row."""

    section: str
    name: str
    value: str
    why: str


def size(size_bytes: int) -> str:
    """Return a number of bytes in the largest unit that divides it."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes % 2**power == 0:
            return f"{size_bytes >> power} {unit}"
    return f"{size_bytes} bytes"


def time(seconds: float | timedelta) -> str:
    """Return a time in the largest unit that divides it."""
    seconds = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % length == 0:
            return f"{seconds // length:g} {unit}"
    return f"{seconds:g} s"


_EACH = "a tenant cannot take the others' turns"
_MEMORY = "memory of a process"
_STRANGERS = "strangers get little memory"
_DISK_OF_PROCESS = "disk of a process"
_DISK = "size of the database"

LIMITS: tuple[Limit, ...] = tuple(
    Limit(section, name, value if isinstance(value, str) else f"{value:,}", why)
    for section, rows in {
        "Requests": (
            ("requests of a tenant at a time, for each process", admission.REQUESTS_EACH, _EACH),
            ("requests of all at a time", admission.REQUESTS, "threads of a process"),
            ("wait for a turn, then 503", time(admission.WAIT_SECONDS), "a client that waits longer tries again"),
            ("requests of a tenant with a large body at a time", admission.LARGE_EACH, _MEMORY),
            ("requests of all with a large body at a time", admission.LARGE, _MEMORY),
            ("long lists made for a tenant at a time", admission.LISTS_EACH, _MEMORY),
            ("long lists made for all at a time", admission.LISTS, _MEMORY),
            ("bytes of a tenant in flight", size(admission.BYTES_EACH), _MEMORY),
            ("bytes of all in flight", size(admission.BYTES), _MEMORY),
            ("bodies of a tenant that wait on disk", size(admission.DISK_BYTES_EACH), _DISK_OF_PROCESS),
            ("bodies of all that wait on disk", size(admission.DISK_BYTES), _DISK_OF_PROCESS),
            ("uploads of a token at a time", rate_limits.UPLOADS_PER_TOKEN, "each may have a temporary file"),
            ("uploads of one blob at a time", rate_limits.UPLOADS_PER_BLOB, "each may have a temporary file"),
            ("different desired states that a tenant waits for", rate_limits.WAITS_FOR_DIFFERENT, "time of changes"),
            ("head of a request", size(middleware.HEAD_LIMIT_BYTES), _MEMORY),
            ("body of a request that needs no token", size(admission.STRANGER_BYTES), _STRANGERS),
            ("time in which it must arrive", time(admission.STRANGER_SECONDS), "strangers hold little memory"),
            ("such bodies from one network at a time", size(admission.STRANGERS_BYTES_EACH), _STRANGERS),
            ("such bodies at a time", size(admission.STRANGERS_BYTES), _STRANGERS),
            ("body of a request", size(request_body.BODY_LIMIT_BYTES), _MEMORY),
            ("body of a push", size(transfer.BULK_BODY_BYTES), _MEMORY),
            ("body of a commit of a Hub client", size(hub.BODY_LIMIT_BYTES), _DISK_OF_PROCESS),
            ("values in a JSON body", operation.VALUES_LIMIT, "each takes 200 bytes when it is parsed"),
            ("slowest body, for each second", size(middleware.BODY_BYTES_PER_SECOND), "a connection is held"),
            ("response that is not read", time(UNREAD_SECONDS), "a connection is held"),
            ("idle connection", time(IDLE_SECONDS), "a connection is held"),
            ("items of a page", api.PAGE_LIMIT, _MEMORY),
            ("adapters of one request to push or pull", transfer.BULK_LIMIT, "one transaction"),
            ("items of a request that moves, approves or describes", api.GROUP_LIMIT, "one transaction"),
        ),
        "Versions": (
            ("size of a version", size(manifest.VERSION_LIMIT_BYTES), "time of its verification"),
            ("files of a version", manifest.FILES_LIMIT, "size of its manifest"),
            ("size of a manifest", size(manifest.MANIFEST_LIMIT_BYTES), _DISK),
            ("annotations of a version", size(manifest.ANNOTATIONS_LIMIT_BYTES), _DISK),
            ("characters of a namespace, adapter or alias", names.NAME_LIMIT, "a path in a URL"),
            ("characters of a description", catalog.DESCRIPTION_LIMIT, _DISK),
            ("tags of an adapter or version, and as many links", catalog.TAGS_LIMIT, _DISK),
            ("header of a safetensors file", size(safetensors.HEADER_LIMIT_BYTES), "time of the compat check"),
            ("tensors of a safetensors file", safetensors.TENSORS_LIMIT, "time of the compat check"),
            ("rank", config.RANK_LIMIT, "no base is larger"),
        ),
        "Access": (
            ("lifetime of a token that has one", time(access.LIFETIME_LIMIT_SECONDS), "a clock that is wrong"),
            ("lifetime of an exchanged token", time(token_exchange.LIFETIME_SECONDS), "one run of a job"),
            ("trusted publishers of a namespace", token_exchange.RULES_LIMIT, "each exchange reads them"),
            ("roles of a namespace", namespaces.ROLES_LIMIT, "each sign-in reads them"),
            ("open pushes of a token", quotas.PUSHES_OF_TOKEN_LIMIT, "rows and staged bytes"),
            ("open pushes of a namespace", quotas.PUSHES_OF_NAMESPACE_LIMIT, "rows and staged bytes"),
            ("life of a link to this server", time(signed_links.LIMIT_SECONDS), "its holder needs no token"),
        ),
        "Aliases, jobs and nodes": (
            ("aliases of an adapter", moves.ALIASES_LIMIT, _DISK),
            ("gates of an adapter, and of a namespace", gates.GATES_LIMIT, "each promotion reads them"),
            ("approvals of a version", approvals.APPROVALS_LIMIT, _DISK),
            ("signatures of a version", signatures.SIGNATURES_LIMIT, _DISK),
            ("attempts of a job", jobs.ATTEMPTS_LIMIT, "a job that always fails"),
            ("adapters of a desired state in one response", desired.WHOLE_LIMIT, "more come page by page"),
            ("versions of an engine on a node", serving.SLOTS_LIMIT, _DISK),
            ("engines of one reporter", reports.NODES_LIMIT, _DISK),
            ("webhooks of a namespace", webhooks.WEBHOOKS_LIMIT, "each event asks all"),
            ("detail of an event", size(audit.DETAIL_LIMIT_BYTES), "the log keeps it forever"),
            ("time that ended pushes and stored responses are kept", time(gc.ENDED_RETENTION), _DISK),
        ),
    }.items()
    for name, value, why in rows
)  # fmt: skip


def by_section() -> Iterator[tuple[str, list[Limit]]]:
    """Yield each section with its rows."""
    for section in dict.fromkeys(limit.section for limit in LIMITS):
        yield section, [limit for limit in LIMITS if limit.section == section]
